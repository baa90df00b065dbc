"""Runs one training on a Ray cluster: `python -m tandem_ray.driver [REQUEST.json]`, or the request on standard input.

This is what `train_fsdp --cluster ray` starts. Nothing is scheduled before the whole request has been checked. The last
line of standard output is a JSON object with the outcome; errors go to standard error, root cause first. Exit codes are
those of the local controller (`exit_codes`).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

# Ray reads these when it is imported or started. What the user has set stays.
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
# A report reaches Ray's records at its next look at the workers, and a lost worker is noticed there.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")

import ray
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)

from tandem_ray import exit_codes
from tandem_ray.errors import ConfigError, InsufficientResourcesError
from tandem_ray.failure_policy import root_cause, worker_failures
from tandem_ray.request import Request, parse_request
from tandem_ray.trainer import TandemTrainer

# Ray waits so long for resources before it tries again.
_START_TIMEOUT: Final = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_START_TIMEOUT_S: Final = 60.0
# Of Linux's prctl.
_PR_SET_PDEATHSIG: Final = 1


def main(arguments: list[str] | None = None) -> int:
    """Runs the request that the arguments name, prints the outcome and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tandem_ray.driver", description="Trains on a Ray cluster.")
    parser.add_argument("request", nargs="?", help="file with the request; standard input when it is left out")
    parser.add_argument("--parent", type=int, metavar="PID", help="the process whose end stops the run as SIGTERM does")
    given = parser.parse_args(arguments)
    if given.parent is not None:
        _stop_with(given.parent)
    path = given.request
    try:
        text = Path(path).read_text(encoding="utf-8") if path else sys.stdin.read()
        outcome = _run(parse_request(text))
    except ConfigError as error:
        outcome = _failed(str(error), exit_codes.USAGE)
    except OSError as error:
        # ConnectionError, of a cluster that is not there, is one of these.
        outcome = _failed(str(error), exit_codes.FAILURE)
    except InsufficientResourcesError as error:
        outcome = _failed(str(error), exit_codes.FAILURE)
    except TrainingFailedError as error:
        failed = worker_failures(error)
        wrong_flags = bool(failed) and not all(worker.may_pass for worker in failed)
        outcome = _failed(root_cause(error), exit_codes.USAGE if wrong_flags else exit_codes.FAILURE)
        sys.stderr.write(f"Ray's account of it: {error}\n")
    except KeyboardInterrupt:
        outcome = _failed("interrupted; the workers were ended without saving", exit_codes.INTERRUPTED)
    sys.stderr.flush()
    sys.stdout.write(json.dumps(_finite(outcome)) + "\n")
    sys.stdout.flush()
    return int(outcome["exit_code"])


def trainer_for(request: Request) -> TandemTrainer:
    """The trainer that a request describes.

    Raises:
        ConfigError: The request cannot work.
    """
    flags = dict(request.flags)
    if request.run.resume_from is not None:
        flags["resume_from"] = request.run.resume_from
    try:
        scaling = ScalingConfig(
            num_workers=request.num_workers,
            use_gpu=request.ray.use_gpu,
            resources_per_worker=request.ray.resources_per_worker,
            placement_strategy=request.ray.placement_strategy,
            accelerator_type=request.ray.accelerator_type,
            label_selector=request.ray.label_selector,
        )
        run = RunConfig(
            name=request.run.name,
            storage_path=request.run.storage_path,
            failure_config=FailureConfig(
                max_failures=request.run.max_failures,
                # Ray counts every vain wait for resources here, and would wait for ever.
                controller_failure_limit=max(1, math.ceil(request.ray.resource_timeout_s / _start_timeout_s())) - 1,
            ),
            checkpoint_config=CheckpointConfig(
                num_to_keep=request.run.num_to_keep,
                checkpoint_score_attribute=request.run.checkpoint_score_attribute,
                checkpoint_score_order=request.run.checkpoint_score_order,
            ),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return TandemTrainer(
        strategy=request.strategy,
        train_config=flags,
        scaling_config=scaling,
        run_config=run,
        binary=request.binary,
        stop_grace_s=request.ray.stop_grace_s,
        hang_timeout_s=request.ray.hang_timeout_s,
    )


def _run(request: Request) -> dict[str, Any]:
    trainer = trainer_for(request)
    _connect(request.ray.address, cpus_of_local(request))
    # Until `fit` handles it, SIGTERM ends the driver as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = trainer.fit()
    finally:
        # Also writes what is left of the workers' output, which the outcome must come after.
        ray.shutdown()
    stopped = trainer.stopped_by is not None
    return {
        "status": "stopped" if stopped else "finished",
        "exit_code": exit_codes.STOPPED_AFTER_SAVING if stopped else exit_codes.OK,
        "path": result.path,
        "checkpoint": None if result.checkpoint is None else Path(result.checkpoint.path).name,
        "metrics": result.metrics or {},
    }


def cpus_of_local(request: Request) -> int | None:
    """How many CPUs a cluster that is started for this run says it has.

    Enough for its workers: the local controller does not count cores either. `None` for a cluster that is there
    already, or where the machine's own number is enough.
    """
    per_worker = 1.0 if request.ray.resources_per_worker is None else request.ray.resources_per_worker.get("CPU", 0.0)
    needed = math.ceil(per_worker * request.num_workers)
    return needed if request.ray.address == "local" and needed > (os.cpu_count() or 1) else None


def _connect(address: str | None, cpus: int | None) -> None:
    try:
        ray.init(address=address, num_cpus=cpus, logging_level=logging.WARNING, ignore_reinit_error=True)
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        raise ConnectionError(
            f"there is no Ray cluster at {address}: {error} Start one with `ray start --head` (and on other nodes `ray "
            "start --address HEAD:6379`), name another one with --ray_address or RAY_ADDRESS, or pass --ray_address "
            "local to start one for this run. If there is one that asks for a token (`ray start` does where it finds "
            "~/.ray/auth_token), set RAY_AUTH_MODE=token."
        ) from error


def _stop_with(parent: int) -> None:
    """Asks the kernel for SIGTERM at the parent's end, and ends at once if that was too late."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(exit_codes.FAILURE)


def _failed(message: str, exit_code: int) -> dict[str, Any]:
    sys.stderr.write(f"error: {message}\n")
    return {"status": "failed", "exit_code": exit_code, "error": message}


def _finite(value: Any) -> Any:  # noqa: ANN401
    """JSON has no NaN; the workers' protocol writes such values as strings, and so does this."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def _start_timeout_s() -> float:
    return float(os.environ.get(_START_TIMEOUT, _START_TIMEOUT_S))


if __name__ == "__main__":
    sys.exit(main())
