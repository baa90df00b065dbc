"""A Ray of several nodes: where rows are placed, and what is refused because it fits nowhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOM, SLOT, add_nodes, wait_until
from ray.cluster_utils import Cluster
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.placement_group import placement_group, remove_placement_group

from tandem_ray import InsufficientResourcesError, TandemTrainer, stop_request

MakeTrainer = Callable[..., TandemTrainer]
Diary = Callable[..., list[dict[str, Any]]]
Meanwhile = Callable[[Callable[[], None]], None]


class Nodes(WorkerGroupCallback):  # type: ignore[misc]
    """Writes down where Ray put the workers of each attempt."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_worker_group_start(self, worker_group: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([worker.metadata.node_id for worker in worker_group.get_workers()]) + "\n")

    def read(self) -> list[list[str]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


def test_rows_stay_on_nodes_and_every_rank_knows_its_place(
    cluster: Cluster, make_trainer: MakeTrainer, diary: Diary, tmp_path: Path
) -> None:
    add_nodes(cluster)
    nodes = Nodes(tmp_path / "nodes.jsonl")
    make_trainer(mesh=(2, 2), scaling={"resources_per_worker": SLOT}, callbacks=[nodes]).fit()
    first, second, third, fourth = nodes.read()[0]
    assert first == second
    assert third == fourth
    assert first != third, "three workers on one node would have cut a row"
    entries = [diary(rank)[0]["env"] for rank in range(4)]
    assert [entry["NODE_RANK"] for entry in entries] == ["0", "0", "1", "1"]
    assert [entry["LOCAL_RANK"] for entry in entries] == ["0", "1", "0", "1"]
    assert {entry["LOCAL_WORLD_SIZE"] for entry in entries} == {"2"}


def test_more_than_the_cluster_has_is_refused_with_what_is_missing(cluster: Cluster, make_trainer: MakeTrainer) -> None:
    add_nodes(cluster)
    with pytest.raises(InsufficientResourcesError, match=r"have room for 6; missing: 2 slot more \(it has 6\)"):
        make_trainer(mesh=(2, 4), scaling={"resources_per_worker": SLOT}).fit()
    with pytest.raises(InsufficientResourcesError, match=r"4 GPU more \(it has 0\)"):
        make_trainer(mesh=(2, 2), scaling={"use_gpu": True}).fit()
    with pytest.raises(InsufficientResourcesError, match=r"Nodes must have the labels {'zone': 'mars'}"):
        make_trainer(scaling={"resources_per_worker": SLOT, "label_selector": {"zone": "mars"}}).fit()


def test_a_cluster_that_stays_busy_is_given_up_with_words(
    cluster: Cluster, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")
    add_nodes(cluster)
    others = placement_group([{"slot": 1}] * 2 * ROOM)
    assert others.wait(60)
    try:
        with pytest.raises(InsufficientResourcesError, match=r"waited in vain .* held by others"):
            make_trainer(scaling={"resources_per_worker": SLOT}).fit()
    finally:
        remove_placement_group(others)


def test_a_preempted_node_is_left_with_a_last_checkpoint_and_counts_as_no_failure(
    cluster: Cluster,
    make_trainer: MakeTrainer,
    diary: Diary,
    meanwhile: Meanwhile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    add_nodes(cluster)
    nodes = Nodes(tmp_path / "nodes.jsonl")
    # Nobody but the notice asks for a checkpoint before the end, which comes when both nodes were seen.
    trainer = make_trainer(
        scaling={"resources_per_worker": SLOT}, callbacks=[nodes], steps=100000, step_ms=100, checkpoint_every=0
    )

    def announce() -> None:
        wait_until("the workers train", (tmp_path / "run" / "fake_rank1.jsonl").exists)
        announced = nodes.read()[0][0]
        drain = ["ray", "drain-node", "--address", cluster.address, "--node-id", announced]
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
        program = Path(sys.executable).parent / drain[0]
        # The run goes on until the node is gone, and by then it must have saved, on a busy machine too.
        subprocess.run([program, *drain[1:], *reason, "--deadline-remaining-seconds", "20"], check=True)
        wait_until("the workers train again", lambda: len(diary(0)) == len(diary(1)) == 2)
        # The next test needs another.
        cluster.remove_node(next(node for node in cluster.worker_nodes if node.node_id == announced))
        stop_request.request_stop(trainer.stop_key)

    meanwhile(announce)
    result = trainer.fit()
    assert result.return_value["status"] == "stopped"
    before, after = nodes.read()
    assert before != after
    assert [attempt["first"] > 1 for attempt in diary(0)] == [False, True], "it went on from the checkpoint"
