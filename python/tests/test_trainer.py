"""Whole runs on a real Ray, with workers that do nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.train
from ray.train import CheckpointConfig

from tandem_ray import TandemTrainer, WorkerFailedError
from tandem_ray.failure_policy import root_cause

pytestmark = pytest.mark.usefixtures("cluster")

MakeTrainer = Callable[..., TandemTrainer]
Diary = Callable[..., list[dict[str, Any]]]


class Reports(ray.train.UserCallback):  # type: ignore[misc]
    """Writes every report of rank 0 into a file: callbacks live in Ray's controller, not here."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        with self.path.open("a") as file:
            file.write(json.dumps([len(metrics), metrics[0], checkpoint and Path(checkpoint.path).name]) + "\n")


def test_a_run_ends_with_its_metrics_checkpoints_and_callbacks(
    make_trainer: MakeTrainer, diary: Diary, tmp_path: Path
) -> None:
    reports = tmp_path / "reports.jsonl"
    result = make_trainer(mesh=(2, 2), callbacks=[Reports(reports)]).fit()
    assert result.metrics == {"loss": 8 / 5, "tokens_per_second": 100.0, "step": 4, "epoch": 0}
    assert result.checkpoint is not None
    assert Path(result.checkpoint.path) == tmp_path / "run" / "checkpoint_000004"
    assert result.return_value["status"] == "finished"
    assert [json.loads(line)[::2] for line in reports.read_text().splitlines()] == [
        [4, "checkpoint_000002"],
        [4, "checkpoint_000004"],
    ]
    # Written once, by the workers: Ray copied nothing and added nothing.
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoint_000004").iterdir()) == ["commit.json"]
    entries = [diary(rank)[0]["env"] for rank in range(4)]
    assert [entry["RANK"] for entry in entries] == ["0", "1", "2", "3"]
    assert [entry["LOCAL_RANK"] for entry in entries] == ["0", "1", "2", "3"]
    assert {entry["LOCAL_WORLD_SIZE"] for entry in entries} == {"4"}
    assert len({entry["MASTER_PORT"] for entry in entries}) == 1
    assert {entry["CUDA_VISIBLE_DEVICES"] for entry in entries} == {""}
    assert {entry["TANDEM_RUN_DIR"] for entry in entries} == {str(tmp_path / "run")}


def test_without_checkpoints_the_last_steps_metrics_are_the_results(make_trainer: MakeTrainer) -> None:
    result = make_trainer(checkpoint_every=0).fit()
    assert result.checkpoint is None
    assert result.metrics == {"loss": 8 / 5, "tokens_per_second": 100.0, "step": 4, "epoch": 0}


def test_a_failure_is_followed_by_a_restart_from_the_last_checkpoint(make_trainer: MakeTrainer, diary: Diary) -> None:
    result = make_trainer(fault_kind="error", fault_rank=1, fault_step=4, steps=6, max_failures=1).fit()
    assert result.metrics is not None and result.metrics["loss"] == 8 / 7
    attempts = diary(0)
    assert [attempt["env"]["TANDEM_ATTEMPT"] for attempt in attempts] == ["0", "1"]
    assert [attempt["first"] for attempt in attempts] == [1, 3]
    assert not any(Path(f"/proc/{attempt['pid']}").exists() for rank in range(2) for attempt in diary(rank))


def test_more_failures_than_allowed_end_the_run_with_the_workers_own_words(
    make_trainer: MakeTrainer, diary: Diary
) -> None:
    trainer = make_trainer(fault_kind="error", fault_rank=1, fault_step=3, fault_attempts=9, max_failures=1)
    with pytest.raises(ray.train.TrainingFailedError, match="rank 1, step 3: the loss is NaN") as caught:
        trainer.fit()
    assert root_cause(caught.value) == "rank 1, step 3: the loss is NaN"
    assert len(diary(0)) == 2
    errors = [error for error in caught.value.worker_failures.values() if isinstance(error, WorkerFailedError)]
    assert any(error.failure.rank == 1 and not error.failure.secondary for error in errors)


def test_a_worker_that_says_nothing_is_quoted(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ray.train.TrainingFailedError, match="exited with code 3 without saying why") as caught:
        make_trainer(fault_kind="exit", fault_rank=1, fault_step=2).fit()
    assert "the engine is on fire" in root_cause(caught.value)
    assert root_cause(caught.value).startswith("rank 1, step 1: ")


def test_wrong_flags_that_only_workers_notice_are_not_tried_again(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ray.train.TrainingFailedError, match="learning_rate is negative") as caught:
        make_trainer(fault_kind="usage", max_failures=5).fit()
    assert all(error.failure.exit_code == 2 for error in caught.value.worker_failures.values())


def test_ray_keeps_as_many_checkpoints_as_it_was_told(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    config = CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="loss", checkpoint_score_order="max")
    result = make_trainer(steps=5, checkpoint_every=1, checkpoint_config=config).fit()
    # The best is the first, and the latest stays whatever its score.
    kept = sorted(path.name for path in (tmp_path / "run").glob("checkpoint_*") if path.is_dir())
    assert kept == ["checkpoint_000001", "checkpoint_000002", "checkpoint_000005"]
    assert result.metrics is not None and result.metrics["step"] == 5
    snapshot = json.loads((tmp_path / "run" / "checkpoint_manager_snapshot.json").read_text())
    assert snapshot["latest_checkpoint_result"]["checkpoint_dir_name"] == "checkpoint_000005"


def test_a_run_is_continued_by_name(make_trainer: MakeTrainer, diary: Diary, tmp_path: Path) -> None:
    make_trainer(steps=2).fit()
    # A checkpoint that was committed when the run was lost, so that Ray never heard of it.
    shutil.copytree(tmp_path / "run" / "checkpoint_000002", tmp_path / "run" / "checkpoint_000003")
    result = make_trainer(resume_from="run", steps=4).fit()
    assert [attempt["first"] for attempt in diary(0)] == [1, 4]
    assert result.metrics is not None and result.metrics["step"] == 4
    assert result.best_checkpoints is not None
    names = [Path(checkpoint.path).name for checkpoint, _ in result.best_checkpoints]
    assert names == ["checkpoint_000002", "checkpoint_000003", "checkpoint_000004"]
