"""Ray Train's `report`, for checkpoints that the workers have written to the run's folder already."""

from __future__ import annotations

import posixpath
from typing import Any

import ray.train


def report(metrics: dict[str, Any], checkpoint_dir_name: str | None) -> None:
    """Reports metrics and, by name, a checkpoint in the run's folder. Nothing is copied."""
    if checkpoint_dir_name is None:
        ray.train.report(metrics)
        return
    storage = ray.train.get_context().get_storage()
    checkpoint = ray.train.Checkpoint(
        path=storage.build_checkpoint_path_from_name(checkpoint_dir_name), filesystem=storage.storage_filesystem
    )
    ray.train.report(
        metrics,
        checkpoint=checkpoint,
        checkpoint_dir_name=checkpoint_dir_name,
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
    )


def latest_checkpoint() -> str | None:
    """The newest checkpoint that Ray has on record, by name: the same on all ranks."""
    checkpoint = ray.train.get_checkpoint()
    return None if checkpoint is None else posixpath.basename(checkpoint.path)


def preemption_announced() -> bool:
    """Whether Ray knows that a node of the run is about to be taken away.

    The public `ray.train.get_preemption_info` is a barrier over all ranks. This looks at the same information on this
    rank alone, and says no on a Ray that has none.
    """
    try:
        from ray.train.v2._internal.execution.context import get_train_context  # noqa: PLC0415 - not in every Ray

        return get_train_context().preemption_context.preemption_info is not None
    except (ImportError, AttributeError, RuntimeError):
        return False
