"""Whether Ray starts a failed run again, and what is told to the user when it does not."""

from __future__ import annotations

from typing import Any

from ray.train import TrainingFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy

from tandem_ray.errors import WorkerFailedError


class NoRestartAfterUsageError(FailurePolicy):  # type: ignore[misc]
    """Ray's own policy, except that wrong flags are never tried again: the workers would only refuse them again."""

    def __init__(self, policy: FailurePolicy) -> None:
        super().__init__(policy.failure_config)
        self._policy = policy

    def make_decision(self, training_failed_error: TrainingFailedError) -> Any:  # noqa: ANN401 - Ray's enumeration
        """Called by Ray's controller after a failure."""
        decision = self._policy.make_decision(training_failed_error)
        if all(error.may_pass for error in worker_failures(training_failed_error)):
            return decision
        return FailureDecision.RAISE


def worker_failures(error: BaseException) -> list[WorkerFailedError]:
    """What workers said when they failed; the root cause first, failures that only follow from others last."""
    failures = [
        failure for failure in getattr(error, "worker_failures", {}).values() if isinstance(failure, WorkerFailedError)
    ]
    return sorted(failures, key=lambda failed: (failed.failure.secondary, failed.failure.rank))


def root_cause(error: BaseException) -> str:
    """One message for the user: the worker's own words, or Ray's about an actor or itself."""
    failed = worker_failures(error)
    if failed and not failed[0].failure.secondary:
        return str(failed[0])
    for rank, failure in getattr(error, "worker_failures", {}).items():
        if not isinstance(failure, WorkerFailedError):
            return f"the Ray worker of world rank {rank} was lost: {failure}"
    if failed:
        return str(failed[0])
    return str(getattr(error, "controller_failure", error))
