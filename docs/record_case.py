"""Records how PyTorch trains a Hugging Face model, as a case for `tandem replay --check`.

parity.md, beside this file, says how to use it; tests-data/golden/README.md describes every file that it writes.
"""

import argparse
import gc
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.core_model_loading import revert_weight_conversion

# Beyond rounding in fp32. Single tensors are judged more loosely than all together, because Adam's first step on an
# element is about lr * sign(gradient) however small the gradient is.
TOLERANCES = {
    "loss_abs": 2e-5,
    "grad_norm_rel": 5e-5,
    "final_update_rel": 5e-4,
    "final_tensor_rel": 1e-2,
    "logits_abs": 5e-5,
    "grad_global_rel": 5e-6,
    "grad_tensor_rel": 2e-5,
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder with config.json and safetensors")
    parser.add_argument("--output", type=Path, required=True, help="folder of the case")
    batches = parser.add_mutually_exclusive_group(required=True)
    batches.add_argument("--text", type=Path, help="text file to make batches of, with the model's tokenizer")
    batches.add_argument("--batches", type=Path, help="batches.safetensors of another case")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=4, help="rows of the global batch")
    parser.add_argument("--seq_length", type=int, default=48)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--betas", type=float, nargs=2, default=[0.9, 0.999])
    parser.add_argument("--weight_decay", type=float, default=0.1)
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument(
        "--float64",
        action=argparse.BooleanOptionalAction,
        help="also train in float64, by which both PyTorch's fp32 and the replay are then judged [default: where it fits in memory]",
    )
    return parser.parse_args()


def batches_of_text(arguments: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Consecutive windows of the text: `[steps, batch_size, seq_length]` each."""
    shape = (arguments.steps, arguments.batch_size, arguments.seq_length)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    ids = torch.tensor(tokenizer(arguments.text.read_text())["input_ids"])
    needed = torch.Size(shape).numel()
    if len(ids) < needed:
        raise SystemExit(f"{arguments.text} has {len(ids)} tokens, and these batches need {needed}")
    ids = ids[:needed].reshape(shape).contiguous()
    return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}


class Float64(TorchFunctionMode):
    """Float64 where a model's code asks for fp32 by name, as norms, softmax and rotary embeddings do."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        def widened(value):
            return torch.float64 if value is torch.float32 else value

        if function is torch.Tensor.float:
            function = torch.Tensor.double
        keywords = {name: widened(value) for name, value in (keywords or {}).items()}
        return function(*map(widened, arguments), **keywords)


def load(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """The model, to be trained: what is eager is the definition that fused kernels are held against."""
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **eager)
    # transformers drops the gradient of the padding token's embedding, also where padding is the end-of-text token, which is
    # in the text and wants to be learned. Tandem keeps it.
    model.get_input_embeddings().padding_idx = None
    return model.to(dtype).train()


def as_in_files(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters, or their gradients, by their names in files: in memory, the experts of a layer are one tensor."""
    named = revert_weight_conversion(model, tensors)
    # Parts of a tensor are written as tensors.
    return {name: tensor if name in tensors else tensor.clone() for name, tensor in named.items()}


def loss_sum(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross entropy summed over all targets: position t predicts labels[t + 1], and -100 is no target."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    predictions = logits[:, :-1].flatten(0, 1).float()
    return torch.nn.functional.cross_entropy(predictions, batch["labels"][:, 1:].flatten(), reduction="sum")


@dataclass
class Recording:
    """What training computes."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    n_tokens: list[int] = field(default_factory=list)
    # Logits and gradients of the first step, parameters after the last.
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


def train(model: torch.nn.Module, batches: dict[str, torch.Tensor], arguments: argparse.Namespace) -> Recording:
    recording = Recording()
    parameters = dict(model.named_parameters())  # a tied weight is here once
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=arguments.lr, betas=tuple(arguments.betas), weight_decay=arguments.weight_decay
    )
    for step in range(len(batches["input_ids"])):
        batch = {name: tensor[step] for name, tensor in batches.items()}
        if step == 0:
            with torch.no_grad():
                row = {name: tensor[:1] for name, tensor in batch.items() if name != "labels"}
                recording.tensors["logits"] = model(**row).logits[0].clone()
        targets = int((batch["labels"][:, 1:] != -100).sum())
        loss = loss_sum(model, batch) / targets
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            gradients = as_in_files(model, {name: parameter.grad for name, parameter in parameters.items()})
            recording.tensors |= {f"grad.{name}": gradient.clone() for name, gradient in gradients.items()}
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters.values(), arguments.max_grad_norm)
        optimizer.step()
        recording.losses.append(loss.item())
        recording.grad_norms.append(grad_norm.item())
        recording.n_tokens.append(targets)
        print(f"step {step}: loss {recording.losses[-1]:.6f}, gradient norm {recording.grad_norms[-1]:.6f}", flush=True)
    last = as_in_files(model, {name: parameter.detach() for name, parameter in parameters.items()})
    recording.tensors |= {f"final.{name}": parameter for name, parameter in last.items()}
    return recording


def fits_in_float64(model: torch.nn.Module, batches: dict[str, torch.Tensor]) -> bool:
    """Whether there is memory for a training in float64; also where nobody says how much there is."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tokens = batches["input_ids"][0].numel()
    # Weights, gradients, two moments and the gradients that are kept; logits, with all that their loss makes of them.
    needed = 8 * (5 * parameters + 6 * tokens * model.config.vocab_size)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return True
    available = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    if needed > available:
        print(f"no float64: it needs about {needed / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free")
    return needed <= available


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)  # one order of additions, so that a case can be recorded again bit for bit
    batches = load_file(arguments.batches) if arguments.batches else batches_of_text(arguments)
    steps, batch_size, seq_length = batches["input_ids"].shape

    model = load(arguments.model, torch.float32)
    pad_token = model.config.pad_token_id
    if pad_token is not None:
        print(f"padding_idx is switched off: the embedding of token {pad_token} gets its gradient, as in Tandem")
    arguments.output.mkdir(parents=True)
    shutil.copy(arguments.model / "config.json", arguments.output)
    initial = as_in_files(model, {name: parameter.detach() for name, parameter in model.named_parameters()})
    save_file(initial, arguments.output / "model.safetensors")
    save_file(batches, arguments.output / "batches.safetensors")
    del initial

    recording = train(model, batches, arguments)
    save_file(recording.tensors, arguments.output / "expected.safetensors")
    trajectory = {
        "format": 1,
        "case": arguments.output.name,
        "compute_dtype": "float32",
        "n_steps": steps,
        "global_batch": batch_size,
        "seq": seq_length,
        "grad_accum": 1,
        "micro_batch": batch_size,
        "optimizer": "torch.optim.AdamW",
        "lr": arguments.lr,
        "lr_schedule": "constant",
        "betas": arguments.betas,
        "eps": 1e-8,
        "weight_decay": arguments.weight_decay,
        "max_grad_norm": arguments.max_grad_norm,
        "n_tokens": recording.n_tokens,
        "loss": recording.losses,
        "grad_norm": recording.grad_norms,
        "tolerances": TOLERANCES | {"final_max_abs": arguments.lr},
        "made_with": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "attention": "eager",
            "padding_idx": None,
        },
    }
    del recording
    model.zero_grad()
    gc.collect()  # what the first training leaves, the second one may need
    if arguments.float64 or (arguments.float64 is None and fits_in_float64(model, batches)):
        del model
        print("the same in float64")
        model = load(arguments.model, torch.float64)
        with Float64():
            recording = train(model, batches, arguments)
        save_file(recording.tensors, arguments.output / "expected_fp64.safetensors")
        trajectory |= {"loss_fp64": recording.losses, "grad_norm_fp64": recording.grad_norms}
    (arguments.output / "trajectory.json").write_text(json.dumps(trajectory, indent=1) + "\n")


if __name__ == "__main__":
    main()
