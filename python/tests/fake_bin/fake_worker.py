#!/usr/bin/env python3
"""A worker without a model: it keeps the workers' contract (environment, control socket, exit codes) and does nothing.

It needs Python's standard library alone. Ranks meet at MASTER_ADDR as real ones do, rank 0 takes over the listening
socket that it was given, and every step ends with a barrier that notices lost peers. The "loss" is a function of the
step, so a run that continued in the right place ends with the same loss as one that was never interrupted.
"""

import argparse
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

STOPPED = 75


def main() -> int:
    die_with_parent()
    flags = parse_flags()
    if flags.check_flags:
        return 0
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    control = Control(rank)
    if world_size != flags.num_workers:
        return fail(control, rank, None, "WORLD_SIZE is not --num_workers", exit_code=2)
    if flags.fault_kind == "usage":
        return fail(control, rank, None, "--learning_rate is negative; pass a number above 0", exit_code=2)
    control.send(event="phase", name="loading")
    peers = Peers(rank, world_size)
    print(f"rank {rank} of {world_size} is here, attempt {os.environ['TANDEM_ATTEMPT']}", flush=True)
    return train(flags, control, rank, peers)


def train(flags: argparse.Namespace, control: "Control", rank: int, peers: "Peers") -> int:
    run_dir = Path(os.environ["TANDEM_RUN_DIR"])
    attempt = int(os.environ["TANDEM_ATTEMPT"])
    may_resume = attempt > 0 or flags.resume_from is not None
    first = newest_step(run_dir) + 1 if may_resume else 1
    time.sleep(flags.load_s)
    control.send(event="phase", name="training")
    # Whoever sees this knows that the supervisor has been told.
    with (run_dir / f"fake_rank{rank}.jsonl").open("a") as diary:
        diary.write(json.dumps({"first": first, "pid": os.getpid(), "env": variables()}) + "\n")
    step = first - 1
    newest = f"checkpoint_{step:06}"
    if step > 0 and newest != os.environ["TANDEM_CHECKPOINT"]:
        # It was committed, but its report was lost.
        control.send(event="report", metrics={"loss": loss(step)}, checkpoint_dir_name=newest)
    for step in range(first, flags.steps + 1):
        if (code := misfortune(flags, control, rank, step, attempt)) is not None:
            return code
        time.sleep(flags.step_ms / 1000)
        progress = {"loss": loss(step), "tokens_per_second": 100.0}
        control.send(event="progress", step=step, epoch=(step - 1) // 4, metrics=progress)
        saves = flags.checkpoint_every > 0 and step % flags.checkpoint_every == 0
        wish = 2 if control.stop.is_set() and not flags.stubborn else int(control.save_now.is_set())
        try:
            agreed = peers.agree(wish)
        except ConnectionError as error:
            return fail(control, rank, step, f"{error} during all_reduce #{step}", secondary=True)
        stops = agreed == 2
        if saves or agreed:
            control.save_now.clear()
            save(control, run_dir, rank, step)
        if stops:
            return STOPPED
    control.send(event="done", metrics={"loss": loss(step)})
    return 0


def misfortune(flags: argparse.Namespace, control: "Control", rank: int, step: int, attempt: int) -> int | None:
    if step != flags.fault_step or attempt >= flags.fault_attempts or rank != flags.fault_rank:
        return None
    if flags.fault_kind == "error":
        return fail(control, rank, step, "the loss is NaN")
    if flags.fault_kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if flags.fault_kind == "kill_parent":
        os.kill(os.getppid(), signal.SIGKILL)
    if flags.fault_kind == "exit":
        print("the engine is on fire", file=sys.stderr, flush=True)
        os._exit(3)
    time.sleep(3600)
    return None


def save(control: "Control", run_dir: Path, rank: int, step: int) -> None:
    name = f"checkpoint_{step:06}"
    if rank == 0:
        folder = run_dir / name
        folder.mkdir(exist_ok=True)
        (folder / "commit.json").write_text(json.dumps({"step": step}))
    control.send(event="report", metrics={"loss": loss(step)}, checkpoint_dir_name=name)


def newest_step(run_dir: Path) -> int:
    return max((int(path.parent.name.removeprefix("checkpoint_")) for path in run_dir.glob("*/commit.json")), default=0)


def loss(step: int) -> float:
    return 8.0 / (step + 1)


class Peers:
    """Rank 0 hears everybody and answers everybody."""

    def __init__(self, rank: int, world_size: int) -> None:
        if rank == 0:
            listener = socket.socket(fileno=int(os.environ["TANDEM_MASTER_FD"]))
            assert listener.getsockname()[1] == int(os.environ["MASTER_PORT"])
            self.sockets = [listener.accept()[0] for _ in range(world_size - 1)]
            listener.close()
        else:
            address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            self.sockets = [socket.create_connection(address)]
        self.rank = rank
        self.agree(0)

    def agree(self, wish: int) -> int:
        """The largest wish of any rank."""
        if self.rank == 0:
            agreed = max([wish, *map(self.receive, self.sockets)])
            for peer in self.sockets:
                peer.sendall(bytes([agreed]))
            return agreed
        self.sockets[0].sendall(bytes([wish]))
        return self.receive(self.sockets[0])

    def receive(self, peer: socket.socket) -> int:
        if not (byte := peer.recv(1)):
            raise ConnectionError("a rank left" if self.rank == 0 else "rank 0 left")
        return byte[0]


def fail(
    control: "Control", rank: int, step: int | None, message: str, *, exit_code: int = 1, secondary: bool = False
) -> int:
    control.send(event="error", rank=rank, step=step, message=message, secondary=secondary, exit_code=exit_code)
    return exit_code


class Control:
    def __init__(self, rank: int) -> None:
        self.stop, self.save_now = threading.Event(), threading.Event()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(os.environ["TANDEM_CONTROL"])
        threading.Thread(target=self.read, daemon=True).start()
        self.send(event="hello", rank=rank, pid=os.getpid(), version=1)

    def send(self, **message: object) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def read(self) -> None:
        for line in self.socket.makefile("rb"):
            getattr(self, json.loads(line)["command"]).set()


def die_with_parent() -> None:
    if "TANDEM_CONTROLLER_PID" in os.environ:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != int(os.environ["TANDEM_CONTROLLER_PID"]):
            sys.exit(1)


def variables() -> dict[str, str]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    return {name: os.environ[name] for name in (*names, "TANDEM_ATTEMPT", "TANDEM_RUN_DIR", "CUDA_VISIBLE_DEVICES")}


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("tp_size", "num_workers"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name, default in {"dp_size": 1, "zero_stage": 1, "steps": 4, "step_ms": 20, "checkpoint_every": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in {"load_s": 0, "fault_rank": -1, "fault_step": -1, "fault_attempts": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--fault_kind", choices=["none", "error", "kill", "kill_parent", "exit", "hang", "usage"])
    parser.add_argument("--stubborn", choices=["true", "false"], default="false")
    for name in ("storage_path", "experiment_name", "resume_from"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--check_flags", nargs="?", const="all")
    flags = parser.parse_args()
    flags.stubborn = flags.stubborn == "true"
    return flags


if __name__ == "__main__":
    sys.exit(main())
