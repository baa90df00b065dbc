"""A Ray of several nodes on loopback: where rows are placed, and what happens when a node is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from conftest import FAKE_BIN, OBJECT_STORE_BYTES, patiently
from ray.cluster_utils import Cluster
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from tandem_ray import InsufficientResourcesError, TandemTrainer

MakeTrainer = Callable[..., TandemTrainer]
Diary = Callable[..., list[dict[str, Any]]]

# Each node has room for three workers, whatever the machine has.
ROOM = 3
SLOT = {"CPU": 0.1, "slot": 1}
NODE = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False, "num_cpus": 2}


def fill(cluster: Cluster) -> None:
    """Brings the cluster to two nodes for workers."""
    while len(cluster.worker_nodes) < 2:
        patiently(lambda: cluster.add_node(**NODE, resources={"slot": ROOM}))
    cluster.wait_for_nodes()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without room, which the driver is on, and two nodes for workers."""
    ray.shutdown()
    os.environ["TANDEM_BIN_DIR"] = str(FAKE_BIN)
    cluster = patiently(lambda: Cluster(initialize_head=True, connect=False, head_node_args=NODE))
    fill(cluster)
    ray.init(address=cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


class Nodes(WorkerGroupCallback):  # type: ignore[misc]
    """Writes down where Ray put the workers of each attempt."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_worker_group_start(self, worker_group: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([worker.metadata.node_id for worker in worker_group.get_workers()]) + "\n")

    def read(self) -> list[list[str]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.mark.usefixtures("cluster")
def test_rows_stay_on_nodes_and_every_rank_knows_its_place(
    make_trainer: MakeTrainer, diary: Diary, tmp_path: Path
) -> None:
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


@pytest.mark.usefixtures("cluster")
def test_more_than_the_cluster_has_is_refused_with_what_is_missing(make_trainer: MakeTrainer) -> None:
    with pytest.raises(InsufficientResourcesError, match=r"have room for 6; missing: 2 slot more \(it has 6\)"):
        make_trainer(mesh=(2, 4), scaling={"resources_per_worker": SLOT}).fit()
    with pytest.raises(InsufficientResourcesError, match=r"4 GPU more \(it has 0\)"):
        make_trainer(mesh=(2, 2), scaling={"use_gpu": True}).fit()
    with pytest.raises(InsufficientResourcesError, match=r"Nodes must have the labels {'zone': 'mars'}"):
        make_trainer(scaling={"resources_per_worker": SLOT, "label_selector": {"zone": "mars"}}).fit()


def test_a_lost_node_is_survived_on_another(
    cluster: Cluster, make_trainer: MakeTrainer, diary: Diary, tmp_path: Path
) -> None:
    nodes = Nodes(tmp_path / "nodes.jsonl")
    trainer = make_trainer(
        scaling={"resources_per_worker": SLOT}, callbacks=[nodes], steps=8, step_ms=500, max_failures=1
    )

    def lose_node() -> None:
        folder = tmp_path / "run"
        while not (folder / "checkpoint_manager_snapshot.json").exists():
            time.sleep(0.05)
        lost = next(node for node in cluster.worker_nodes if node.node_id == nodes.read()[0][0])
        cluster.remove_node(lost, allow_graceful=False)

    loss = threading.Thread(target=lose_node)
    loss.start()
    result = trainer.fit()
    loss.join()
    assert result.metrics is not None and result.metrics["loss"] == 8 / 9
    before, after = nodes.read()
    assert len(set(before)) == len(set(after)) == 1
    assert before != after
    assert diary(0)[1]["first"] >= 3
    for rank in range(2):
        for attempt in diary(rank):
            assert not Path(f"/proc/{attempt['pid']}").exists()


def test_a_preempted_node_is_left_with_a_last_checkpoint_and_counts_as_no_failure(
    cluster: Cluster, make_trainer: MakeTrainer, diary: Diary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    fill(cluster)
    nodes = Nodes(tmp_path / "nodes.jsonl")
    # Nobody but the notice asks for a checkpoint before the run is over.
    trainer = make_trainer(
        scaling={"resources_per_worker": SLOT}, callbacks=[nodes], steps=60, step_ms=500, checkpoint_every=0
    )

    def announce() -> None:
        while not (tmp_path / "run" / "fake_rank1.jsonl").exists():
            time.sleep(0.05)
        drain = ["ray", "drain-node", "--address", cluster.address, "--node-id", nodes.read()[0][0]]
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
        program = Path(sys.executable).parent / drain[0]
        subprocess.run([program, *drain[1:], *reason, "--deadline-remaining-seconds", "15"], check=True)

    notice = threading.Thread(target=announce)
    notice.start()
    result = trainer.fit()
    notice.join()
    assert result.metrics is not None and result.metrics["step"] == 60
    before, after = nodes.read()
    assert before != after
    assert [attempt["first"] > 1 for attempt in diary(0)] == [False, True], "it went on from the checkpoint"
