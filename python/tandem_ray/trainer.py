"""`TandemTrainer`: Tandem's training as a Ray Train job, for Python users."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import ray
from ray.train import ControllerError, Result, RunConfig, ScalingConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from tandem_ray import actor, ray_cluster, stop_request, train_config
from tandem_ray.backend import TandemBackendConfig
from tandem_ray.cluster_resources import Resources
from tandem_ray.errors import ConfigError, InsufficientResourcesError
from tandem_ray.failure_policy import NoRestartAfterUsageError
from tandem_ray.preflight import check_flags
from tandem_ray.row_placement import RowPlacement
from tandem_ray.run_folder import check_resume, run_dir
from tandem_ray.supervisor import Patience
from tandem_ray.train_config import FlagValue
from tandem_ray.worker_spec import WorkerSpec, passed_on

logger = logging.getLogger(__name__)


class TandemTrainer(DataParallelTrainer):  # type: ignore[misc]
    """Trains with tensor parallelism x data parallelism on a Ray cluster.

    Example:
        result = TandemTrainer(
            strategy="fsdp",
            train_config={"model_name": "Qwen/Qwen2-0.5B", "tp_size": 2, "dp_size": 2, "num_epochs": 1},
            scaling_config=ray.train.ScalingConfig(num_workers=4, use_gpu=True),
            run_config=ray.train.RunConfig(name="qwen2", storage_path="/mnt/cluster_storage"),
        ).fit()

    Ray Train places and supervises the workers, restarts them after failures and keeps the checkpoints; Tandem's binary
    trains. Checkpoints are written by the workers straight into the run's folder, so `storage_path` must be reachable
    from every node.

    Args:
        strategy: "fsdp" (declared plan, sharded parameters) or "deepspeed" (inferred plan, ZeRO 0 to 2).
        train_config: The flags of train_fsdp or train_deepspeed by name, without the dashes. `tp_size` must be among
            them; `resume_from` continues the run of that name; what Ray decides (num_to_keep, ...) is in run_config.
        scaling_config: `num_workers` is tp_size x dp_size, fixed. With `use_gpu`, each worker has exactly one GPU.
        run_config: Name, storage, failures, checkpoints, callbacks, as for every Ray Train job.
        binary: The program, where it is not to be found beside Python or on PATH. Every node needs it.
        stop_grace_s: How long the workers may take to save after Ctrl-C or SIGTERM before they are killed.
        hang_timeout_s: A worker that gives no sign of life for so long is killed; 0 waits for ever.

    Raises:
        ConfigError: The configuration cannot work. Nothing was scheduled.
    """

    def __init__(  # noqa: PLR0913 - as Ray's own trainers
        self,
        strategy: str,
        train_config: Mapping[str, FlagValue],
        *,
        scaling_config: ScalingConfig | None = None,
        run_config: RunConfig | None = None,
        binary: str | None = None,
        stop_grace_s: float = 120.0,
        hang_timeout_s: float = 600.0,
    ) -> None:
        plan = _plan(strategy, train_config, scaling_config or ScalingConfig(), run_config or RunConfig())
        patience = Patience(stop_grace_s, hang_timeout_s)
        self.stop_key = stop_request.new_key()
        self.stopped_by: str | None = None
        self._controller: Any = None
        self._labels = plan.labels
        check_flags(plan.entry_point, plan.args, binary)
        super().__init__(
            actor.train,
            train_loop_config={
                "worker": WorkerSpec(plan.entry_point, plan.args, binary, patience, self.stop_key, passed_on()),
            },
            backend_config=TandemBackendConfig(tp_size=plan.tp_size, run_dir=plan.run_dir),
            scaling_config=plan.scaling_config,
            run_config=plan.run_config,
        )

    def fit(self) -> Result:
        """Runs the training to its end.

        The first Ctrl-C or SIGTERM lets the workers finish their step, save and leave; `stopped_by` then names the
        signal. A second one ends them at once.

        Returns:
            Ray's result: metrics of the last checkpoint (of the last step, where there is no checkpoint), the
            checkpoints, and in `return_value` whether the run "finished" or was "stopped".

        Raises:
            InsufficientResourcesError: The cluster can never hold the workers, or did not within the time to wait.
            ray.train.TrainingFailedError: The run failed more often than `max_failures` allows.
        """
        if not ray.is_initialized():
            ray.init()
        ray_cluster.check_resources(*self._needs())
        try:
            with stop_request.stopped_by_signals(self.stop_key) as signals:
                result: Result = super().fit()
        except KeyboardInterrupt:
            self._abort()
            raise
        except ControllerError as error:
            if not isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
                raise
            raise InsufficientResourcesError(self._why_not_started()) from error
        finally:
            stop_request.withdraw(self.stop_key)
        ending: dict[str, Any] = result.return_value or {}
        if ending.get("status") == "stopped" and signals.received is not None:
            self.stopped_by = signals.received.name
        if result.metrics is None:
            # Ray remembers metrics with checkpoints only.
            result.metrics = ending.get("metrics")
        return result

    def _initialize_and_run_controller(self, **controller: Any) -> Result:  # noqa: ANN401
        controller["failure_policy"] = NoRestartAfterUsageError(controller["failure_policy"])
        return super()._initialize_and_run_controller(**controller)

    def _register_sigint_handler(self, controller: Any) -> None:  # noqa: ANN401
        """Ray would abort the run at the first Ctrl-C, without a last checkpoint; `fit` handles signals instead."""
        self._controller = controller

    def _needs(self) -> tuple[Resources, int, dict[str, str] | None]:
        scaling = self.scaling_config
        # With accelerator_type and defaults.
        per_worker = scaling._resources_per_worker_not_none  # noqa: SLF001
        return per_worker, scaling.num_workers, self._labels

    def _why_not_started(self) -> str:
        missing = ray_cluster.lacking(*self._needs()) or "they are held by others, or a node does not answer."
        return f"waited in vain for room for the workers: {missing} What was saved is kept: resume_from continues"

    def _abort(self) -> None:
        if self._controller is not None:
            # The controller ends itself in the course of it.
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._controller.abort.remote())


@dataclasses.dataclass(frozen=True)
class _Plan:
    entry_point: str
    args: tuple[str, ...]
    tp_size: int
    run_dir: str
    labels: dict[str, str] | None
    scaling_config: ScalingConfig
    run_config: RunConfig


def _plan(strategy: str, flags: Mapping[str, FlagValue], scaling: ScalingConfig, run: RunConfig) -> _Plan:
    _check_scaling(scaling, flags)
    num_workers: int = scaling.num_workers
    tp_size = train_config.check(strategy, flags, num_workers)
    resume_from = flags.get("resume_from")
    if resume_from is not None:
        run = dataclasses.replace(run, name=str(resume_from))
    folder = run_dir(run.storage_path, run.name)
    check_resume(folder, resume=resume_from is not None)
    labels = scaling.label_selector if isinstance(scaling.label_selector, dict) else None
    callbacks = [*run.callbacks, actor.EndWorker()]
    # A list of selectors and a strategy other than packing are decisions of the user's own.
    if scaling.placement_strategy == "PACK" and not isinstance(scaling.label_selector, list):
        callbacks.append(RowPlacement(tp_size, labels))
    own = {name: value for name, value in flags.items() if name not in {"num_workers", "resume_from"}}
    name_flag = "resume_from" if resume_from is not None else "experiment_name"
    args = train_config.to_args(
        {**own, "num_workers": num_workers, "storage_path": run.storage_path, name_flag: run.name}
    )
    return _Plan(
        entry_point=train_config.entry_point(strategy),
        args=args,
        tp_size=tp_size,
        run_dir=folder,
        labels=labels,
        scaling_config=scaling,
        run_config=dataclasses.replace(run, callbacks=callbacks),
    )


def _check_scaling(scaling: ScalingConfig, flags: Mapping[str, FlagValue]) -> None:
    if not isinstance(scaling.num_workers, int) or scaling.num_workers < 1:
        raise ConfigError(
            f"num_workers is {scaling.num_workers!r}; it must be tp_size x dp_size: the mesh of a run does not change"
        )
    if scaling.use_tpu:
        raise ConfigError("use_tpu is set, but Tandem trains on CPUs and NVIDIA GPUs only")
    gpus = (scaling.resources_per_worker or {}).get("GPU", 1 if scaling.use_gpu else 0)
    if scaling.use_gpu and gpus != 1:
        raise ConfigError(f"resources_per_worker has {gpus:g} GPU; every worker uses exactly one")
    device = flags.get("device")
    if device == "cuda" and not scaling.use_gpu:
        raise ConfigError("device is cuda, but use_gpu is not set: Ray would give the workers no GPU")
    if device == "cpu" and scaling.use_gpu:
        raise ConfigError("device is cpu, but use_gpu is set: the workers would hold GPUs and not use them")
