"""Tandem's backend for Ray Train: gives every worker its rank and the address where ranks meet, at every (re)start."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig

from tandem_ray import actor
from tandem_ray.ranks import lay_out

logger = logging.getLogger(__name__)


@dataclass
class TandemBackendConfig(BackendConfig):  # type: ignore[misc]
    """What the backend needs to know."""

    tp_size: int
    # The run's folder, as the workers see it.
    run_dir: str

    @property
    def backend_cls(self) -> type[Backend]:
        return TandemBackend


class TandemBackend(Backend):  # type: ignore[misc]
    """One per controller; `on_start` is called before every attempt."""

    # A worker chooses its GPU by LOCAL_RANK, and peers on a node reach each other's memory.
    share_cuda_visible_devices = True

    def __init__(self) -> None:
        self._attempt = 0

    def on_start(self, worker_group: Any, backend_config: TandemBackendConfig) -> None:  # noqa: ANN401 - Ray's own type moves
        """Called by Ray in its controller, when all actors are up."""
        hosts: list[actor.Host] = worker_group.execute(actor.host)
        layout = lay_out([host.node_id for host in hosts], backend_config.tp_size)
        if warning := layout.warning(backend_config.tp_size):
            logger.warning(warning)
        port = worker_group.execute_single(0, actor.open_rendezvous)
        shared = {
            "MASTER_ADDR": hosts[0].address,
            "MASTER_PORT": str(port),
            # Ray's own channels take it to the workers, who prove to each other that they have it.
            "TANDEM_RENDEZVOUS_SECRET": secrets.token_hex(32),
            "TANDEM_ATTEMPT": str(self._attempt),
            "TANDEM_RUN_DIR": backend_config.run_dir,
        }
        self._attempt += 1
        ray.get(
            [
                worker_group.execute_single_async(index, actor.set_environment, {**place.variables(), **shared})
                for index, place in enumerate(layout.places)
            ]
        )
