"""The built binaries on Ray: they must not be missing, and must train exactly as under the local controller."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from conftest import RUN_LIMIT_S, SLOT, add_nodes, wait_until
from ray.cluster_utils import Cluster
from ray.train import CheckpointConfig, UserCallback
from runs import FLAGS, Attempts, Command, kept, latest, parent

from tandem_ray import ConfigError, TandemTrainer, stop_request

pytestmark = pytest.mark.usefixtures("cluster")

MakeTrainer = Callable[..., TandemTrainer]
Meanwhile = Callable[[Callable[[], None]], None]


class Evaluations(UserCallback):  # type: ignore[misc]
    """Writes what Ray's callbacks hear of evaluations into a file: they live in Ray's controller, not here."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_report(self, run_context: object, metrics: list[dict[str, Any]], checkpoint: object) -> None:  # noqa: ARG002
        if checkpoint is None:
            with self.path.open("a") as file:
                file.write(json.dumps(metrics[0]["eval_loss"]) + "\n")

    def read(self) -> list[float]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


# Steps of a run that goes on until it is asked to stop.
ENDLESS: Final = 100000


@pytest.fixture
def command(binaries: Path, tmp_path: Path, cluster: Cluster) -> Command:
    return Command(binaries, tmp_path, cluster.address)


def test_the_command_line_trains_on_ray_as_on_this_machine(command: Command) -> None:
    assert command.run("local", max_steps=6) == 0
    assert command.run("run", *command.ray, max_steps=6, save_steps=4) == 0
    expected = command.losses("local")
    assert len(expected) == 6
    assert command.losses("run") == expected
    assert expected[-1] < expected[0], "something is learnt"
    run_dir = command.storage / "run"
    assert len(kept(run_dir)) == 2
    assert latest(run_dir) == kept(run_dir)[-1]
    assert f"done; metrics and checkpoints are in {run_dir}" in command.log("run").read_text()


def test_the_trainer_does_as_the_command_line_with_the_other_strategy(
    command: Command, make_trainer: MakeTrainer
) -> None:
    # A fine-tune: questions with answers, several a row, and others to evaluate on.
    trained, held_out = command.storage / "trained.jsonl", command.storage / "held_out.jsonl"
    for path, first, count in [(trained, 0, 150), (held_out, 500, 20)]:
        rows = (
            {"prompt": f"{n} and {n}?", "completion": " " + "so " * (n % 9 + 1)} for n in range(first, first + count)
        )
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {**FLAGS, "dataset_name": str(trained), "dataset_percentage": 100, "packing": "true"}
    own = {name: value for name, value in flags.items() if FLAGS.get(name) != value}
    assert command.run("local", strategy="deepspeed", max_steps=6, zero_stage=1, **own) == 0
    evaluations = Evaluations(command.storage / "evaluations.jsonl")
    result = make_trainer(
        strategy="deepspeed",
        mesh=(2, 2),
        binary=str(command.binaries / "train_deepspeed"),
        # The worst is kept, because the best is the last one, which is kept in any case.
        checkpoint_config=CheckpointConfig(
            num_to_keep=1, checkpoint_score_attribute="eval_loss", checkpoint_score_order="max"
        ),
        callbacks=[evaluations],
        **flags,
        max_steps=6,
        zero_stage=1,
        save_steps=2,
        eval_steps=2,
        eval_dataset_name=str(held_out),
    ).fit()
    expected = command.losses("local")
    assert command.losses("run") == expected, "evaluations change nothing"
    assert result.metrics is not None and result.checkpoint is not None
    assert (result.metrics["step"], result.metrics["loss"]) == (6, expected[-1])
    assert Path(result.checkpoint.path).name == latest(command.storage / "run")
    evaluated = command.eval_losses("run")
    assert list(evaluated) == [2, 4, 6]
    assert result.metrics["eval_loss"] == evaluated[6]
    assert evaluations.read() == list(evaluated.values())
    worst = max(evaluated, key=lambda step: evaluated[step])
    names = kept(command.storage / "run")
    commits = [json.loads((command.storage / "run" / name / "commit.json").read_text()) for name in names]
    assert [commit["global_step"] for commit in commits] == sorted({worst, 6})


def test_a_killed_worker_and_a_killed_ray_worker_are_survived_with_the_same_losses(
    command: Command, make_trainer: MakeTrainer, meanwhile: Meanwhile
) -> None:
    trainer = make_trainer(
        mesh=(2, 2),
        binary=str(command.binaries / "train_fsdp"),
        max_failures=2,
        checkpoint_config=CheckpointConfig(num_to_keep=2),
        **FLAGS,
        max_steps=ENDLESS,
        save_steps=2,
    )
    run = Attempts(command.storage / "run", size=4)

    def misfortunes() -> None:
        os.kill(run.next()[3], signal.SIGKILL)
        os.kill(parent(run.next()[1]), signal.SIGKILL)
        run.next()
        stop_request.request_stop(trainer.stop_key)

    meanwhile(misfortunes)
    result = trainer.fit()
    losses = command.losses("run")
    assert command.run("local", max_steps=len(losses)) == 0
    assert losses == command.losses("local")
    assert result.metrics is not None and result.metrics["step"] == len(losses)
    assert len(kept(run.directory)) == 2, "num_to_keep"
    assert latest(run.directory) == kept(run.directory)[-1]
    assert not run.survivors()


def test_a_lost_node_is_survived_on_another_with_the_same_losses(
    cluster: Cluster, command: Command, make_trainer: MakeTrainer, meanwhile: Meanwhile
) -> None:
    add_nodes(cluster)
    trainer = make_trainer(
        binary=str(command.binaries / "train_fsdp"),
        scaling={"resources_per_worker": SLOT},
        max_failures=1,
        **FLAGS,
        max_steps=ENDLESS,
        save_steps=2,
    )
    run = Attempts(command.storage / "run", size=2)

    def lose_node() -> None:
        # An actor's parent is its node's Ray process.
        raylet = parent(parent(run.next()[0]))
        lost = next(node for node in cluster.worker_nodes if node.all_processes["raylet"][0].process.pid == raylet)
        cluster.remove_node(lost, allow_graceful=False)
        run.next()
        stop_request.request_stop(trainer.stop_key)

    meanwhile(lose_node)
    trainer.fit()
    losses = command.losses("run")
    assert command.run("local", mesh=(2, 1), max_steps=len(losses)) == 0
    assert losses == command.losses("local")
    assert not run.survivors()


def test_a_run_that_fails_for_good_ends_with_the_root_cause(command: Command) -> None:
    # A learning rate at which everything overflows within a few steps.
    overflow = {"learning_rate": 1e30, "max_grad_norm": 0, "max_steps": 20}
    assert command.run("run", *command.ray, mesh=(2, 1), max_failures=1, **overflow) == 1
    errors = [line for line in command.log("run").read_text().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "error: rank " in errors[0] and ("NaN" in errors[0] or "inf" in errors[0])


def test_ctrl_c_on_ray_saves_and_the_run_goes_on_here_with_the_same_losses(command: Command) -> None:
    run_dir = command.storage / "run"
    on_ray = command.start("run", *command.ray, max_steps=ENDLESS)
    try:
        wait_until("the workers train", lambda: (run_dir / "metrics.jsonl").exists() or on_ray.poll() is not None)
        on_ray.send_signal(signal.SIGINT)
        code = on_ray.wait(timeout=RUN_LIMIT_S)
    finally:
        on_ray.kill()
        print(command.log("run").read_text())
    assert code == 75
    assert "--resume_from run continues" in command.log("run").read_text()
    done = len(command.losses("run"))
    assert kept(run_dir) == [latest(run_dir)]
    assert command.run("again", resume_from="run", max_steps=done + 4) == 0
    assert command.run("local", max_steps=done + 4) == 0
    assert command.losses("run") == command.losses("local")


def test_a_run_of_this_machine_goes_on_on_ray_with_another_mesh(command: Command) -> None:
    assert command.run("run", max_steps=4) == 0
    assert command.run("run", *command.ray, max_steps=8) == 2, "not without being asked to"
    assert "--resume_from run" in command.log("run").read_text()
    [first] = kept(command.storage / "run")
    assert command.run("again", *command.ray, mesh=(1, 2), resume_from="run", max_steps=8) == 0
    assert command.run("local", max_steps=8) == 0
    assert command.losses("run") == pytest.approx(command.losses("local"), abs=2e-5)
    assert kept(command.storage / "run")[0] == first
    assert latest(command.storage / "run") == kept(command.storage / "run")[1]


def test_what_does_not_fit_or_is_wrong_is_refused(command: Command, make_trainer: MakeTrainer) -> None:
    too_much = [*command.ray[:2], "--resources_per_worker=CPU=0.1,slot=2"]
    assert command.run("run", *too_much, max_steps=1) == 1
    assert "missing: " in command.log("run").read_text()
    with pytest.raises(ConfigError, match=r"train_fsdp refuses its flags: .*--seq_length"):
        make_trainer(binary=str(command.binaries / "train_fsdp"), **{**FLAGS, "seq_length": 1})
    with pytest.raises(ConfigError, match=r"(?s)train_fsdp refuses its flags: .*fp8"):
        make_trainer(binary=str(command.binaries / "train_fsdp"), **{**FLAGS, "dtype": "fp8"})
