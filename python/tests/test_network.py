"""Two hosts with a Ray node and two workers each: rows within hosts, columns over the network, and the link cut."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from conftest import RUN_LIMIT_S, wait_until
from hosts import Hosts
from runs import Command, workers

# How long ranks wait for each other. A step takes a fraction of it, also on a busy machine.
TIMEOUT_S: Final = 8
# What a worker may take to notice that the time is over, and to end.
LATE_S: Final = 15
STEPS: Final = 30


@pytest.fixture(scope="module", params=[60])
def hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with Hosts(port, request.param) as hosts:
        yield hosts


@pytest.fixture
def command(binaries: Path, tmp_path: Path, hosts: Hosts) -> Command:
    command = Command(binaries, tmp_path, hosts.address, hosts.within(0))
    command.ray[-1] += ",slot=1"
    command.environment["RAY_AUTH_MODE"] = "disabled"
    if not hosts.separate:
        command.ray.append("--transport=tcp")
    return command


class Cut:
    """A run of the long command, and the silence between the hosts in the middle of it."""

    def __init__(self, hosts: Hosts, command: Command) -> None:
        self.hosts, self.command = hosts, command
        self.run_dir = command.storage / "run"
        self.process: subprocess.Popen[str] | None = None
        self._workers: dict[int, int] = {}
        self._stopped: list[int] = []

    def start(self) -> None:
        self.process = self.command.start(
            "run", *self.command.ray, comm_timeout_s=TIMEOUT_S, max_steps=STEPS, save_steps=1, max_failures=2
        )
        wait_until("the workers train", lambda: self.ended() or self.steps() > 3)
        assert not self.ended()

    def cut(self) -> None:
        self._workers = workers(self.run_dir)
        if self.hosts.separate:
            self.hosts.link("down")
        else:
            print("no link to cut: the workers of the second host are stopped instead")
            self._stopped = [pid for rank, pid in self._workers.items() if rank > 1]
            for pid in self._stopped:
                os.kill(pid, signal.SIGSTOP)

    def heal(self) -> None:
        if self.hosts.separate:
            self.hosts.link("up")
        for pid in self._stopped:
            os.kill(pid, signal.SIGCONT)

    def steps(self) -> int:
        path = self.run_dir / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def a_worker_has_ended(self) -> bool:
        return workers(self.run_dir) != self._workers

    def errors(self) -> list[str]:
        """What the command line has shown so far of workers that waited in vain."""
        return [line for line in self.text().splitlines() if "error: no answer from rank " in line]

    def text(self) -> str:
        return self.command.log("run").read_text()

    def end(self) -> int:
        assert self.process is not None
        return self.process.wait(RUN_LIMIT_S)


@pytest.fixture
def cut(hosts: Hosts, command: Command) -> Iterator[Cut]:
    cut = Cut(hosts, command)
    yield cut
    if cut.process is not None:
        cut.process.kill()
        print(cut.text())


def test_two_hosts_train_as_one(command: Command, hosts: Hosts) -> None:
    assert command.run("local", max_steps=4) == 0
    assert command.run("run", *command.ray, max_steps=4) == 0
    assert command.losses("run") == command.losses("local")
    assert "straddle nodes" not in command.log("run").read_text(), "a row was cut"
    if hosts.separate:
        text = command.log("run").read_text()
        assert all(f"(ip={address}, " in text for address in ("10.78.0.1", "10.78.0.2")), "both hosts trained"


def test_a_cut_link_is_a_clear_error_in_time_and_the_run_goes_on_when_it_heals(cut: Cut) -> None:
    cut.start()
    cut.cut()
    since = time.monotonic()
    wait_until("a rank has waited in vain", cut.a_worker_has_ended)
    assert time.monotonic() - since < TIMEOUT_S + LATE_S
    cut.heal()
    assert cut.end() == 0
    error = cut.errors()[0]
    assert f"within {TIMEOUT_S} s during " in error and "(step " in error and "--comm_timeout_s" in error, error
    assert cut.command.run("local", max_steps=STEPS) == 0
    assert cut.command.losses("run") == cut.command.losses("local")


@pytest.mark.long
@pytest.mark.parametrize("hosts", [5], indirect=True)
def test_a_host_that_ray_has_given_up_is_waited_for_until_it_is_back(cut: Cut, hosts: Hosts) -> None:
    cut.start()
    if hosts.separate:
        cut.cut()
        wait_until("Ray has given the host up", lambda: "has been marked dead" in cut.text() or cut.ended())
        wait_until("the command line names who did not answer", lambda: bool(cut.errors()) or cut.ended())
        cut.heal()
        wait_until("the host's Ray node has learnt of it", lambda: hosts.node_has_ended(1))
    else:
        print("no link to cut: the Ray node of the second host is ended instead")
        hosts.end_node(1)
        wait_until("Ray has noticed", lambda: "was lost" in cut.text() or "RETRY" in cut.text() or cut.ended())
    hosts.start_node(1)
    assert cut.end() == 0
    assert cut.command.run("local", max_steps=STEPS) == 0
    assert cut.command.losses("run") == cut.command.losses("local")
