"""What the driver is asked to run: one JSON object, checked in full before anything is started."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tandem_ray.errors import ConfigError
from tandem_ray.train_config import ENTRY_POINTS, FlagValue

_STRATEGIES: Final = {program: strategy for strategy, program in ENTRY_POINTS.items()}
_PLACEMENT_STRATEGIES: Final = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


@dataclass(frozen=True)
class RunOptions:
    """What Ray's RunConfig decides."""

    storage_path: str
    # One of these two.
    name: str | None = None
    resume_from: str | None = None
    max_failures: int = 0
    num_to_keep: int | None = None
    checkpoint_score_attribute: str | None = None
    checkpoint_score_order: str = "max"


@dataclass(frozen=True)
class RayOptions:
    """The cluster and what each worker gets of it."""

    # As of ray.init: None finds or starts a Ray on this machine, "auto" only finds one; or host:port.
    address: str | None = None
    use_gpu: bool = False
    resources_per_worker: dict[str, float] | None = None
    placement_strategy: str = "PACK"
    accelerator_type: str | None = None
    label_selector: dict[str, str] | None = None
    # How long one failed attempt to get resources may take, and how often it is tried.
    resource_timeout_s: float = 600.0
    stop_grace_s: float = 120.0
    hang_timeout_s: float = 600.0


@dataclass(frozen=True)
class Request:
    """A run."""

    entry_point: str
    # The flags of the workers by name; without those of `run`.
    flags: Mapping[str, FlagValue]
    num_workers: int
    run: RunOptions
    ray: RayOptions = field(default_factory=RayOptions)
    # The workers' program, where it is not to be found beside Python or on PATH.
    binary: str | None = None

    @property
    def strategy(self) -> str:
        """The strategy of the entry point."""
        return _STRATEGIES[self.entry_point]


def parse_request(text: str) -> Request:
    """Reads a request.

    Raises:
        ConfigError: It is not JSON, lacks something, has something unknown, or a value is of the wrong type.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"the request is not JSON: {error}") from error
    top = _Fields("the request", value, {"entry_point", "flags", "num_workers", "run", "ray", "binary"})
    run = _Fields("run", top.take("run", _an_object, {}), set(RunOptions.__dataclass_fields__))
    cluster = _Fields("ray", top.take("ray", _an_object, {}), set(RayOptions.__dataclass_fields__))
    request = Request(
        entry_point=top.require("entry_point", _one_of(tuple(_STRATEGIES))),
        flags=top.take("flags", _an_object, {}),
        num_workers=top.require("num_workers", _a_count),
        binary=top.take("binary", _a_text, None),
        run=RunOptions(
            storage_path=run.require("storage_path", _a_text),
            name=run.take("name", _a_text, None),
            resume_from=run.take("resume_from", _a_text, None),
            max_failures=run.take("max_failures", _a_limit, 0),
            num_to_keep=run.take("num_to_keep", _a_count, None),
            checkpoint_score_attribute=run.take("checkpoint_score_attribute", _a_text, None),
            checkpoint_score_order=run.take("checkpoint_score_order", _one_of(("max", "min")), "max"),
        ),
        ray=RayOptions(
            address=cluster.take("address", _a_text, None),
            use_gpu=cluster.take("use_gpu", _a_flag, default=False),
            resources_per_worker=cluster.take("resources_per_worker", _resources, None),
            placement_strategy=cluster.take("placement_strategy", _one_of(_PLACEMENT_STRATEGIES), "PACK"),
            accelerator_type=cluster.take("accelerator_type", _a_text, None),
            label_selector=cluster.take("label_selector", _labels, None),
            resource_timeout_s=cluster.take("resource_timeout_s", _seconds, 600.0),
            stop_grace_s=cluster.take("stop_grace_s", _seconds, 120.0),
            hang_timeout_s=cluster.take("hang_timeout_s", _seconds_or_none, 600.0),
        ),
    )
    if (request.ray.address or "").startswith("ray://"):
        raise ConfigError(
            "ray has an address of Ray Client (ray://), over which Ray Train does not run; pass the cluster's own "
            "address (host:6379), or submit the command with `ray job submit`"
        )
    if (request.run.name is None) == (request.run.resume_from is None):
        raise ConfigError("run needs either name, for a new run, or resume_from, to continue one")
    return request


class _Fields:
    """One JSON object, whose fields are taken with a check each."""

    def __init__(self, where: str, value: object, known: set[str]) -> None:
        self._where = where
        if not isinstance(value, dict):
            raise ConfigError(f"{where} must be a JSON object")
        self._value: dict[str, Any] = value
        if unknown := sorted(set(value) - known):
            raise ConfigError(
                f"{where} has {', '.join(unknown)}, which is unknown; known are {', '.join(sorted(known))}"
            )

    def take(self, name: str, check: Callable[[object], Any], default: Any) -> Any:  # noqa: ANN401
        """The field's value; the default where it is missing or null."""
        value = self._value.get(name)
        if value is None:
            return default
        try:
            return check(value)
        except ValueError as error:
            raise ConfigError(f"{self._where} has {name} = {value!r}; it must be {error}") from None

    def require(self, name: str, check: Callable[[object], Any]) -> Any:  # noqa: ANN401
        """The field's value."""
        value = self.take(name, check, None)
        if value is None:
            raise ConfigError(f"{self._where} lacks {name}")
        return value


def _a_text(value: object) -> str:
    if isinstance(value, str) and value:
        return value
    raise ValueError("a string")


def _a_flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


def _a_count(value: object) -> int:
    if type(value) is int and value >= 1:
        return value
    raise ValueError("a whole number, 1 or more")


def _a_limit(value: object) -> int:
    if type(value) is int and value >= -1:
        return value
    raise ValueError("a whole number, 0 or more, or -1 for no limit")


def _seconds(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return float(value)
    raise ValueError("a number of seconds above 0")


def _seconds_or_none(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    raise ValueError("a number of seconds, or 0 for no limit")


def _one_of(choices: tuple[str, ...]) -> Callable[[object], str]:
    def check(value: object) -> str:
        if isinstance(value, str) and value in choices:
            return value
        raise ValueError(f"one of {', '.join(choices)}")

    return check


def _an_object(value: object) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise ValueError("a JSON object")


def _resources(value: object) -> dict[str, float]:
    if isinstance(value, dict) and all(type(amount) in {int, float} and amount >= 0 for amount in value.values()):
        return {name: float(amount) for name, amount in value.items()}
    raise ValueError('amounts by name, such as {"CPU": 4, "GPU": 1}')


def _labels(value: object) -> dict[str, str]:
    if isinstance(value, dict) and all(isinstance(label, str) for label in value.values()):
        return value
    raise ValueError('values by label, such as {"ray.io/accelerator-type": "H100"}')
