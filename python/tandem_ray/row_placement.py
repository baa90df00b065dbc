"""Asks Ray to keep tensor parallel rows within nodes.

Ray places single workers: four of them on two nodes with room for three each end up as three and one, and a row of two
is cut, although two and two would fit. Before every start this callback looks at what is free and ties each worker to
a node, unless the user decided the placement, or no such placement exists.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from tandem_ray import ray_cluster
from tandem_ray.cluster_resources import Node, Resources, place_rows

logger = logging.getLogger(__name__)

_NODE_ID_LABEL: Final = "ray.io/node-id"


class RowPlacement(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
    """A callback for Ray Train's controller."""

    def __init__(self, tp_size: int, labels: dict[str, str] | None) -> None:
        self._tp_size = tp_size
        self._labels = labels
        self._scaling_config: Any = None
        # The node of each worker of the attempt that ends now, which still holds its resources.
        self._node_of_worker: list[str] = []
        # Where the workers were that failed. Which node is to blame is not known: a host that was cut off says nothing.
        self._suspects: set[str] = set()

    def after_controller_start(self, train_run_context: Any) -> None:  # noqa: ANN401 - Ray's own types move
        """The controller's own copy of the configuration, which decides the placement."""
        self._scaling_config = train_run_context.scaling_config

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:  # noqa: ANN401
        """Called before every start of the workers."""
        per_worker: Resources = resize_decision.resources_per_worker
        nodes = [
            self._with_held(node, per_worker)
            for node in ray_cluster.nodes(self._labels, free=True)
            # Ray notices a node that died or was cut off some time after the workers; until then it would wait for it.
            if node.node_id not in self._suspects or ray_cluster.answers(node.node_id)
        ]
        self._suspects.clear()
        placement = place_rows(nodes, per_worker, resize_decision.num_workers, self._tp_size)
        if placement is None:
            self._scaling_config.label_selector = self._labels
            return
        self._scaling_config.label_selector = [{**(self._labels or {}), _NODE_ID_LABEL: node} for node in placement]

    def after_worker_group_start(self, worker_group: Any) -> None:  # noqa: ANN401
        """Remembers which nodes the workers are on."""
        self._node_of_worker = [worker.metadata.node_id for worker in worker_group.get_workers()]

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:  # noqa: ANN401
        """Notes that the nodes are to be looked at before the next start."""
        if worker_group_status.errors:
            self._suspects.update(self._node_of_worker)

    def after_worker_group_shutdown(self, worker_group_context: Any) -> None:  # noqa: ANN401, ARG002
        """The workers hold nothing any more."""
        self._node_of_worker = []

    def _with_held(self, node: Node, per_worker: Resources) -> Node:
        held = self._node_of_worker.count(node.node_id)
        names = {*node.resources, *per_worker}
        return Node(
            node.node_id,
            {name: node.resources.get(name, 0.0) + held * per_worker.get(name, 0.0) for name in names},
        )
