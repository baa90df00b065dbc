"""What happens inside the Ray actor of one rank.

Ray runs `host`, `open_rendezvous` and `set_environment` in it before training (see `backend`), then `train` in a
thread, and `EndWorker` when it is about to end the actor. They share what is in this module.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.v2._internal.execution import context as ray_context
from ray.train.v2._internal.execution.callback import WorkerCallback

from tandem_ray.ray_report import latest_checkpoint, preemption_announced, report
from tandem_ray.reporter import Reporter
from tandem_ray.stop_request import StopWatch
from tandem_ray.supervisor import Signs, Supervisor
from tandem_ray.worker_spec import WorkerSpec, find_program


@dataclass(frozen=True)
class Host:
    """Where an actor runs."""

    node_id: str
    address: str


@dataclass
class _State:
    environment: dict[str, str]
    rendezvous: socket.socket | None = None
    supervisor: Supervisor | None = None


_state = _State(environment={})


def host() -> Host:
    """Where this actor runs."""
    return Host(node_id=ray.get_runtime_context().get_node_id(), address=ray.util.get_node_ip_address())


def open_rendezvous() -> int:
    """Opens the socket where the ranks will meet, in the actor of rank 0, and returns its port.

    The worker inherits the listening socket. A port that was only looked up could be somebody else's by the time the
    worker binds it.
    """
    address = host().address
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.bind((address, 0))
    except OSError:
        # The address under which Ray knows this node need not be its own: in a container it may be the host's.
        listener.bind(("", 0))
    listener.listen(socket.SOMAXCONN)
    _state.rendezvous = listener
    return int(listener.getsockname()[1])


def set_environment(variables: dict[str, str]) -> None:
    """Keeps the variables that this actor's worker gets besides the actor's own."""
    _state.environment = variables


def train(config: dict[str, Any]) -> dict[str, Any]:
    """Ray's train function: runs this rank's worker to its end."""
    # Ray says on every rank that it was given a report, once for each.
    logging.getLogger(ray_context.__file__).setLevel(logging.WARNING)
    spec: WorkerSpec = config["worker"]
    program = find_program(spec.entry_point, spec.binary)
    environment = _worker_environment(spec)
    rendezvous = _state.rendezvous
    watch = StopWatch(spec.stop_key)
    supervisor = Supervisor(
        rank=int(environment["RANK"]),
        reporter=Reporter(report),
        signs=Signs(
            stop_requested=watch.requested, preemption_announced=preemption_announced, saves_requested=watch.saves
        ),
        patience=spec.patience,
    )
    _state.supervisor = supervisor
    environment["TANDEM_CHECKPOINT"] = latest_checkpoint() or ""
    inherited = [] if rendezvous is None else [rendezvous.fileno()]
    if rendezvous is not None:
        environment["TANDEM_MASTER_FD"] = str(rendezvous.fileno())
    try:
        return supervisor.run([str(program), *spec.args], environment, pass_fds=inherited)
    finally:
        _state.supervisor = None


class EndWorker(WorkerCallback):  # type: ignore[misc]
    """Ends the worker when Ray ends the actor, without leaving it to the kernel."""

    def before_worker_shutdown(self) -> None:
        """Called by Ray in the actor."""
        if _state.supervisor is not None:
            _state.supervisor.kill()


def _worker_environment(spec: WorkerSpec) -> dict[str, str]:
    environment = {**os.environ, **spec.environment, **_state.environment}
    # A worker that was given no GPU must not find one: another job may have it.
    if not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment
