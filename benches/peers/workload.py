"""The work that every program here does, and how it is measured: the same flags, tokens, steps and line of JSON.

A program gives `main` a function that builds its trainer on one rank, and is otherwise only about its own way to train.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from model import Qwen2Config

LEARNING_RATE = 1e-5
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Workload:
    """What is trained, and on how many ranks. `batch` is rows per data parallel rank."""

    layers: int
    seq: int
    batch: int
    tp: int
    dp: int
    steps: int
    warmup: int
    seed: int
    threads: int

    @property
    def ranks(self) -> int:
        return self.tp * self.dp

    @property
    def config(self) -> Qwen2Config:
        return Qwen2Config(layers=self.layers)

    def batches(self, rank: int) -> Tensor:
        """Random packed tokens, `[warmup + steps, batch, seq]`: alike for ranks that share a row of the mesh."""
        shape = (self.warmup + self.steps, self.dp, self.batch, self.seq)
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(self.config.vocabulary, shape, generator=generator)[:, rank // self.tp]


class Trainer(Protocol):
    """One rank's model and optimizer."""

    def step(self, ids: Tensor) -> Tensor:
        """Forward, backward, clipping and update on `[batch, seq]` tokens; the mean loss of this rank's rows."""


def main(program: str, description: str | None, build: Callable[[Workload], Trainer]) -> None:
    """Reads the command line, trains on `tp * dp` processes and prints one line of JSON."""
    workload = parse_arguments(description)
    # Read when the libraries are loaded, which is in the processes that are started below.
    os.environ["OMP_NUM_THREADS"] = str(workload.threads)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as directory:
        torch.multiprocessing.spawn(run_rank, (program, workload, build, directory), nprocs=workload.ranks)


def parse_arguments(description: str | None) -> Workload:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1, help="rows per data parallel rank")
    parser.add_argument("--tp", type=int, default=1, help="ranks that share a layer")
    parser.add_argument("--dp", type=int, default=1, help="ranks that share the rows")
    parser.add_argument("--steps", type=int, default=10, help="steps that are measured")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="per rank; 0: the cores shared out evenly")
    values = vars(parser.parse_args())
    if values["threads"] == 0:
        values["threads"] = max(1, len(os.sched_getaffinity(0)) // (values["tp"] * values["dp"]))
    return Workload(**values)


def run_rank(
    rank: int, program: str, workload: Workload, build: Callable[[Workload], Trainer], directory: str
) -> None:
    torch.set_num_threads(workload.threads)
    imported_mb = peak_memory_mb()
    dist.init_process_group("gloo", f"file://{directory}/rendezvous", rank=rank, world_size=workload.ranks)
    trainer = build(workload)
    seconds, processor_seconds, losses = [], [], []
    for ids in workload.batches(rank):
        start, processor_start = time.perf_counter(), time.process_time()
        # Reading the loss each step is what a loop that shows its progress does.
        losses.append(trainer.step(ids).item())
        seconds.append(time.perf_counter() - start)
        processor_seconds.append(time.process_time() - processor_start)
    measured = seconds[workload.warmup :]
    step_time = statistics.median(measured)
    mine = {
        "peak_memory_mb": peak_memory_mb(),
        "imported_memory_mb": imported_mb,
        "cpu_s_per_step": statistics.median(processor_seconds[workload.warmup :]),
        "losses": losses,
    }
    all_ranks: list[dict] = [{} for _ in range(workload.ranks)]
    dist.all_gather_object(all_ranks, mine)
    mean_losses = [sum(values) / len(values) for values in zip(*(each["losses"] for each in all_ranks), strict=True)]
    if rank == 0:
        result = {
            "program": program,
            "layers": workload.layers,
            "seq": workload.seq,
            "batch": workload.batch,
            "tp": workload.tp,
            "dp": workload.dp,
            "threads": workload.threads,
            "torch": torch.__version__,
            "step_time_s": step_time,
            "step_times_s": measured,
            "tokens_per_s": workload.batch * workload.seq * workload.dp / step_time,
            "cpu_s_per_step": sum(each["cpu_s_per_step"] for each in all_ranks),
            "peak_memory_mb": [each["peak_memory_mb"] for each in all_ranks],
            "imported_memory_mb": [each["imported_memory_mb"] for each in all_ranks],
            "loss_first": mean_losses[0],
            "loss_last": mean_losses[-1],
        }
        print(json.dumps(result), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def peak_memory_mb() -> float:
    """The largest resident set of this process so far, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1000
    raise RuntimeError("the kernel does not tell a process its peak memory")
