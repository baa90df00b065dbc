"""One training step on one GPU as PyTorch's documentation has it: FSDP2, fused AdamW, clipping; eager, or each layer compiled.

fp32 master weights, moments and reduction; bf16 parameters and compute. `tandem doctor --gpu` runs it beside its own step;
`--device cpu` is for checking the program.
"""

import argparse
import ctypes
import json
import os
import resource
import signal
import statistics
import tempfile
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from model import IGNORED, Qwen2, Qwen2Config, initial_values, shift

WARM_UP = 3

SMOLLM2 = {
    "hidden": 576, "heads": 9, "kv_heads": 3, "intermediate": 1536, "vocabulary": 49_152, "rope_theta": 1e5,
    "rms_eps": 1e-5, "init_std": 0.04, "attention_bias": False,
}  # fmt: skip
LLAMA2 = {
    "hidden": 4096, "heads": 32, "kv_heads": 32, "head_dim": 128, "intermediate": 11_008, "vocabulary": 32_000,
    "rope_theta": 1e4, "rms_eps": 1e-5, "attention_bias": False, "tied": False,
}  # fmt: skip
MODELS = {"qwen2": {}, "smollm2": SMOLLM2, "llama2-7b": LLAMA2}


def main() -> None:
    end_with_parent()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", choices=list(MODELS), default="qwen2")
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="compile each layer and the loss")
    arguments = parser.parse_args()
    backend = "nccl" if arguments.device == "cuda" else "gloo"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as directory:
        dist.init_process_group(backend, f"file://{directory}/rendezvous", rank=0, world_size=1)
        print(json.dumps(measure(arguments)), flush=True)
        dist.destroy_process_group()


def measure(arguments: argparse.Namespace) -> dict:
    device = torch.device(arguments.device)
    config = Qwen2Config(layers=arguments.layers, **MODELS[arguments.model])
    mesh = init_device_mesh(arguments.device, (1,))
    with torch.device("meta"):
        model = Qwen2(config)
    loss_of = cross_entropy
    if arguments.compile:
        for layer in model.layers:
            layer.compile()
        loss_of = torch.compile(cross_entropy)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model.to_empty(device=device)
    model.tie_head()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = initial_values(name, parameter.shape, config, 0)
            parameter.to_local().copy_(values)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.batch, arguments.seq)
    # The same tokens every step: the loss must fall.
    ids = torch.randint(config.vocabulary, shape, generator=generator).to(device)
    targets = shift(ids)

    seconds, losses = [], []
    for _ in range(WARM_UP + arguments.steps):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model(ids), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        losses.append(loss.item())
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    step = statistics.median(seconds[WARM_UP:])
    return {
        "torch": torch.__version__,
        "step_time_s": step,
        "tokens_per_s": arguments.batch * arguments.seq / step,
        "memory_mb": memory_mb(device),
        "loss_first": losses[WARM_UP],
        "loss_last": losses[-1],
    }


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)


def memory_mb(device: torch.device) -> float:
    """What is taken of the device by all that run on it; on a processor, this process's peak."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def end_with_parent() -> None:
    """Asks Linux for the signal that ends this process when the one that started it dies."""
    if "TANDEM_CONTROLLER_PID" in os.environ:
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    main()
