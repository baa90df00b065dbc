"""What the driver is asked to run: one JSON object, checked in full before anything is started.

It is a run's spec as `tandem` writes it, and `request.schema.json` is what `tandem schema` prints. What a schema cannot
say is checked by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from tandem_ray.errors import ConfigError
from tandem_ray.options import RayOptions, RunOptions
from tandem_ray.train_config import ENTRY_POINTS, FlagValue

_STRATEGIES: Final = {program: strategy for strategy, program in ENTRY_POINTS.items()}
_SECTIONS: Final = ("run", "ray")


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
        value = _given(json.loads(text))
    except ValueError as error:
        raise ConfigError(f"the request is not JSON: {error}") from error
    wrong = sorted(_validator().iter_errors(value), key=lambda one: [str(name) for name in one.absolute_path])
    if wrong:
        raise ConfigError(_why(wrong[0], value))
    request = Request(
        entry_point=value["entry_point"],
        flags=value.get("flags", {}),
        num_workers=value["num_workers"],
        binary=value.get("binary"),
        run=RunOptions(**value["run"]),
        ray=RayOptions(**value.get("ray", {})),
    )
    if (request.ray.address or "").startswith("ray://"):
        raise ConfigError(
            "ray has an address of Ray Client (ray://), over which Ray Train does not run; pass the cluster's own "
            "address (host:6379), or submit the command with `ray job submit`"
        )
    if (request.run.name is None) == (request.run.resume_from is None):
        raise ConfigError("run needs either name, for a new run, or resume_from, to continue one")
    return request


@cache
def schema() -> dict[str, Any]:
    """What a request must look like."""
    text = resources.files("tandem_ray").joinpath("request.schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(schema())


def _given(value: object) -> Any:  # noqa: ANN401
    """Without what is null, which is as good as absent."""
    if not isinstance(value, dict):
        return value
    return {name: _given(inner) if name in _SECTIONS else inner for name, inner in value.items() if inner is not None}


def _why(error: ValidationError, value: Any) -> str:  # noqa: ANN401
    path = list(error.absolute_path)
    if not path and error.validator == "type":
        return "the request must be a JSON object"
    known: dict[str, Any] = error.schema.get("properties", {})
    if error.validator == "required":
        lacks = next(name for name in error.validator_value if name not in error.instance)
        return f"{_where(path)} lacks {lacks}"
    if known and error.validator in {"additionalProperties", "unevaluatedProperties"}:
        unknown = ", ".join(sorted(set(error.instance) - set(known)))
        return f"{_where(path)} has {unknown}, which is unknown; known are {', '.join(sorted(known))}"
    # Whatever is wrong inside a field's value, the field is to be told of.
    depth = 2 if path[0] in _SECTIONS and len(path) > 1 else 1
    described = schema()
    for name in path[:depth]:
        described, value = described["properties"][name], value[name]
    return f"{_where(path[: depth - 1])} has {path[depth - 1]} = {value!r}; it must be {_expected(described)}"


def _where(path: list[Any]) -> str:
    return str(path[0]) if path else "the request"


def _choices(described: Mapping[str, Any]) -> list[str]:
    """The values that a field may have, where they are few."""
    alternatives = [one for option in described.get("anyOf", []) for one in option.get("oneOf", [])]
    return list(described.get("enum", [one["const"] for one in alternatives]))


def _expected(described: Mapping[str, Any]) -> str:
    """What a field's schema asks for, in words."""
    if "x-expected" in described:
        return str(described["x-expected"])
    if choices := _choices(described):
        return f"one of {', '.join(choices)}"
    kinds = described.get("type", "object")
    match kinds if isinstance(kinds, str) else kinds[0]:
        case "string":
            return "a string"
        case "boolean":
            return "true or false"
        case "integer":
            return f"a whole number, {described['minimum']} or more"
        case _:
            return "a JSON object"
