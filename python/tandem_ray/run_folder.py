"""The run's folder in storage, `{storage_path}/{name}`, and whether a run is in it already."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Final

import pyarrow.fs

from tandem_ray.errors import ConfigError

# Ray Train's record of a run's checkpoints; the local controller keeps the same.
SNAPSHOT: Final = "checkpoint_manager_snapshot.json"


def run_dir(storage_path: str, name: str) -> str:
    """The folder as workers and Ray both name it: an absolute path, or a URI such as s3://bucket/runs/name."""
    if not name or name in {".", ".."} or "/" in name:
        raise ConfigError(f"the run's name is {name!r}; it must be the name of one folder, such as qwen2-run_1")
    if "://" in storage_path:
        return posixpath.join(storage_path, name)
    # Symbolic links stay: they may be what makes the path the same on every node.
    return str(Path(storage_path).expanduser().absolute() / name)


def check_resume(folder: str, *, resume: bool) -> None:
    """Refuses to continue what is not there, and to overwrite or silently continue what is.

    Raises:
        ConfigError: Either is the case, or storage cannot be read.
    """
    exists = _exists(posixpath.join(folder, SNAPSHOT))
    name = posixpath.basename(folder)
    if resume and not exists:
        raise ConfigError(f"there is nothing to resume: {folder} has no {SNAPSHOT}; look at storage_path and the name")
    if exists and not resume:
        raise ConfigError(
            f"{folder} holds a run already: pass resume_from={name!r} to continue it, or choose another name"
        )


def _exists(path: str) -> bool:
    try:
        if "://" in path:
            filesystem, inner = pyarrow.fs.FileSystem.from_uri(path)
        else:
            filesystem, inner = pyarrow.fs.LocalFileSystem(), path
        info = filesystem.get_file_info(inner)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot look into storage at {path}: {error}") from error
    return bool(info.type != pyarrow.fs.FileType.NotFound)
