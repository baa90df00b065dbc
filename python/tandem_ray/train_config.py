"""The training's own configuration: the flags of the entry points, by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from tandem_ray.errors import ConfigError
from tandem_ray.options import DECIDED_BY_RAY

FlagValue = str | int | float | bool | None | Sequence[str]

ENTRY_POINTS: Final = {"fsdp": "train_fsdp", "deepspeed": "train_deepspeed"}


def entry_point(strategy: str) -> str:
    """The program of a strategy.

    Raises:
        ConfigError: There is no such strategy.
    """
    try:
        return ENTRY_POINTS[strategy]
    except KeyError:
        raise ConfigError(f"strategy is {strategy!r}; it must be one of {', '.join(ENTRY_POINTS)}") from None


def check(strategy: str, train_config: Mapping[str, FlagValue], num_workers: int) -> int:
    """Refuses what cannot be, before anything is scheduled, and returns tp_size.

    Only what concerns the workers as a group is looked at here; the program itself knows its flags best.

    Raises:
        ConfigError: The configuration cannot work.
    """
    entry_point(strategy)
    for name, instead in DECIDED_BY_RAY.items():
        if train_config.get(name) is not None:
            raise ConfigError(f"train_config has {name}; on Ray it is set with run_config={instead}")
    if train_config.get("tp_size") is None:
        raise ConfigError("train_config lacks tp_size, the number of workers that share one copy of the model")
    tp_size = _size(train_config, "tp_size", 1)
    dp_size = _size(train_config, "dp_size", 1)
    if train_config.get("num_workers") not in {None, num_workers}:
        raise ConfigError(
            f"train_config has num_workers {train_config['num_workers']!r}, but scaling_config has {num_workers}"
        )
    if tp_size * dp_size != num_workers:
        raise ConfigError(
            f"tp_size {tp_size} x dp_size {dp_size} is {tp_size * dp_size}, but num_workers is {num_workers}; "
            "every worker has one place in the mesh"
        )
    if strategy == "deepspeed" and train_config.get("zero_stage") not in {None, 0, 1, 2}:
        raise ConfigError(
            f"zero_stage is {train_config['zero_stage']!r}; it must be 0, 1 or 2 "
            "(sharded parameters are strategy 'fsdp')"
        )
    return tp_size


def to_args(train_config: Mapping[str, FlagValue]) -> tuple[str, ...]:
    """The command line: `--name value`, `true` and `false` for booleans, nothing for `None`, one flag per list item.

    Raises:
        ConfigError: A name or a value is none.
    """
    args: list[str] = []
    for name, value in train_config.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ConfigError(f"train_config has {name!r}, which is no flag; write it as in --help, without the dashes")
        values: Sequence[object] = value if isinstance(value, list | tuple) else [value]
        for item in values:
            if item is not None:
                args += [f"--{name}", _text(name, item)]
    return tuple(args)


def _text(name: str, value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str() | int() | float():
            return str(value)
        case _:
            raise ConfigError(f"train_config has {name} = {value!r}; it must be a string, a number or a boolean")


def _size(train_config: Mapping[str, FlagValue], name: str, default: int) -> int:
    value = train_config.get(name)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number, 1 or more")
    return value
