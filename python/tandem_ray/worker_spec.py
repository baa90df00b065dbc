"""What every worker of a run is started with, and where its program is."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tandem_ray.errors import ConfigError
from tandem_ray.supervisor import Patience

# A folder with the binaries, for those who build them from source.
BIN_DIR: Final = "TANDEM_BIN_DIR"
# What the programs read from their environment besides a launcher's variables: settings of the hub, NCCL and the log,
# and the token cache that the command line has checked.
_PASSED_ON: Final = ("HF_", "NCCL_", "RUST_LOG", "TANDEM_TOKEN_CACHE", "TANDEM_EVAL_TOKEN_CACHE")


@dataclass(frozen=True)
class WorkerSpec:
    """The same for every rank. It travels from the driver to the actors, so it names files and does not open them."""

    entry_point: str
    args: tuple[str, ...]
    # The program itself, where it is not to be searched for.
    binary: str | None
    patience: Patience
    # Where the driver leaves word that the run should stop.
    stop_key: str
    # Variables of the driver that workers get as well. Their own are those that their node's Ray was started with.
    environment: dict[str, str] = field(default_factory=dict)


def find_program(entry_point: str, binary: str | None) -> Path:
    """The program on this machine: the given one, then TANDEM_BIN_DIR, this Python's own folder, PATH.

    Raises:
        ConfigError: It is nowhere, or cannot be run.
    """
    if binary is not None:
        return _runnable(Path(binary))
    if folder := os.environ.get(BIN_DIR):
        return _runnable(Path(folder) / entry_point)
    beside_python = Path(sys.executable).parent / entry_point
    if os.access(beside_python, os.X_OK):
        return beside_python
    if found := shutil.which(entry_point):
        return Path(found)
    raise ConfigError(
        f"{entry_point} is not on this machine ({os.uname().nodename}): install the package 'tandem' on every node, or "
        f"set {BIN_DIR} to the folder of the binaries, or pass binary="
    )


def passed_on() -> dict[str, str]:
    """The variables of this process that workers get as well."""
    return {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}


def _runnable(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(f"{path} is not there on this machine ({os.uname().nodename}); every node needs it")
    if not os.access(path, os.X_OK):
        raise ConfigError(f"{path} cannot be executed on this machine ({os.uname().nodename}): check its permissions")
    return path
