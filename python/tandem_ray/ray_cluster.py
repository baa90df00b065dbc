"""What the connected Ray cluster has."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from typing import Final

import ray
from ray._private import state

from tandem_ray.cluster_resources import Node, Resources, shortage
from tandem_ray.errors import InsufficientResourcesError

logger = logging.getLogger(__name__)

_ANSWER_TIMEOUT_S: Final = 3.0


def nodes(labels: Mapping[str, str] | None = None, *, free: bool = False) -> list[Node]:
    """The nodes that take workers and have all `labels`, with what they have, or with what is free of it."""
    available = state.available_resources_per_node() if free else {}
    # A node that is about to be taken away is alive, but takes nothing new.
    draining = state.state.get_draining_nodes()
    found = []
    for node in ray.nodes():
        if not node["Alive"] or node["NodeID"] in draining or not _matches(node.get("Labels", {}), labels or {}):
            continue
        resources = available.get(node["NodeID"], {}) if free else node["Resources"]
        found.append(Node(node["NodeID"], resources))
    return found


def answers(node_id: str) -> bool:
    """Whether the node's own Ray process takes connections."""
    for node in ray.nodes():
        if node["NodeID"] == node_id:
            address = node["NodeManagerAddress"], node["NodeManagerPort"]
            try:
                socket.create_connection(address, timeout=_ANSWER_TIMEOUT_S).close()
            except OSError:
                return False
            return True
    return False


def check_resources(per_worker: Resources, num_workers: int, labels: Mapping[str, str] | None) -> None:
    """Refuses a run that the cluster can never hold, and says so when it must wait for others to end.

    Raises:
        InsufficientResourcesError: The workers would wait for ever.
    """
    if state.state.get_max_resources_from_cluster_config():
        # An autoscaler may add nodes, and Ray checks its upper limit itself.
        return
    if missing := lacking(per_worker, num_workers, labels):
        raise InsufficientResourcesError(missing)
    if missing := shortage(nodes(labels, free=True), per_worker, num_workers):
        logger.warning("the cluster is busy, the run waits for its resources: %s", missing)


def lacking(per_worker: Resources, num_workers: int, labels: Mapping[str, str] | None) -> str | None:
    """What all nodes that are alive lack for the workers, in words; `None` when they have it."""
    missing = shortage(nodes(labels), per_worker, num_workers)
    if missing and labels:
        missing += f" (Nodes must have the labels {dict(labels)}.)"
    return missing


def _matches(has: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    # Ray's selectors know more (in(...), !value). What is not a plain value is left to Ray.
    return all(has.get(name) == value for name, value in wanted.items() if value.replace("-", "").isalnum())
