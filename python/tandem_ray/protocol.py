"""What a worker and its supervisor say to each other: one JSON object a line.

`crates/launch/PROTOCOL.md` is the description; this is the supervisor's reading of it. Both sides ignore what they do
not know, so either may be newer than the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

# A peer that sends more without a line break does not speak this protocol.
MAX_LINE_BYTES: Final = 1 << 20

Metrics = dict[str, float]
Command = Literal["stop", "save_now"]


@dataclass(frozen=True)
class Hello:
    """The first message on a connection: who speaks."""

    rank: int
    pid: int
    version: int


@dataclass(frozen=True)
class Phase:
    """The worker entered a phase, such as `loading` or `training`."""

    name: str


@dataclass(frozen=True)
class Progress:
    """An optimizer step ended."""

    step: int
    epoch: int
    metrics: Metrics


@dataclass(frozen=True)
class Message:
    """Something to show to the user."""

    level: str
    text: str


@dataclass(frozen=True)
class Report:
    """Metrics, with a checkpoint that is committed to storage by now, or without one."""

    metrics: Metrics
    checkpoint_dir_name: str | None


@dataclass(frozen=True)
class Error:
    """The worker failed and is about to exit."""

    rank: int
    step: int | None
    message: str
    secondary: bool
    exit_code: int


@dataclass(frozen=True)
class Done:
    """Training ended as it should."""

    metrics: Metrics


Event = Hello | Phase | Progress | Message | Report | Error | Done


class LineError(ValueError):
    """A line is no message. The connection stays usable."""


def parse_event(line: bytes) -> Event | None:
    """Reads a worker's line; `None` for an event of a newer version.

    Raises:
        LineError: The line is not JSON, not an object, or lacks a field.
    """
    try:
        value = json.loads(line)
    except ValueError as error:
        raise LineError(f"not JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("event"), str):
        raise LineError('not an object with a string "event"')
    try:
        return _event(value)
    except (KeyError, TypeError, ValueError) as error:
        raise LineError(f"bad {value['event']!r} message: {error!r}") from error


def encode_command(command: Command) -> bytes:
    """One line, with its line break."""
    return json.dumps({"command": command}).encode() + b"\n"


def _event(value: Mapping[str, Any]) -> Event | None:  # noqa: PLR0911 - one for each event
    match value["event"]:
        case "hello":
            return Hello(int(value["rank"]), int(value["pid"]), int(value["version"]))
        case "phase":
            return Phase(str(value["name"]))
        case "progress":
            return Progress(int(value["step"]), int(value["epoch"]), _metrics(value))
        case "message":
            return Message(str(value["level"]), str(value["text"]))
        case "report":
            name = value.get("checkpoint_dir_name")
            return Report(_metrics(value), None if name is None else str(name))
        case "error":
            step = value.get("step")
            return Error(
                rank=int(value["rank"]),
                step=None if step is None else int(step),
                message=str(value["message"]),
                secondary=bool(value["secondary"]),
                exit_code=int(value["exit_code"]),
            )
        case "done":
            return Done(_metrics(value))
        case _:
            return None


def _metrics(value: Mapping[str, Any]) -> Metrics:
    # Values that are not finite come as the strings "NaN", "inf" and "-inf", which float() reads. Whole numbers stay
    # whole, so that a step is shown as 12 and not as 12.0.
    metrics: dict[str, Any] = dict(value["metrics"])
    return {str(name): number if type(number) is int else float(number) for name, number in metrics.items()}
