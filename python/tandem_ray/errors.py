"""What can go wrong, as types: wrong input, missing resources, a worker that failed."""

from __future__ import annotations

from dataclasses import dataclass

from tandem_ray import exit_codes


class ConfigError(ValueError):
    """The configuration cannot work. The message says what to change; nothing was scheduled."""


class InsufficientResourcesError(RuntimeError):
    """The cluster can never hold the workers, or did not in time. The message says what is missing."""


@dataclass(frozen=True)
class Failure:
    """How one worker ended, in its own words."""

    rank: int
    step: int | None
    message: str
    exit_code: int
    # Whether the failure only follows from another rank's ("rank 3 left").
    secondary: bool = False

    def __str__(self) -> str:
        where = f"rank {self.rank}" if self.step is None else f"rank {self.rank}, step {self.step}"
        return f"{where}: {self.message}"


class WorkerFailedError(RuntimeError):
    """A worker failed; `failure` says which, where and why.

    Ray carries the exception from the actor to the driver, so it must survive pickling.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure

    def __reduce__(self) -> tuple[type[WorkerFailedError], tuple[Failure]]:
        return type(self), (self.failure,)

    @property
    def may_pass(self) -> bool:
        """Whether starting again can help."""
        return self.failure.exit_code != exit_codes.USAGE
