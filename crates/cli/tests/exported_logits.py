"""Loads exports with transformers and PEFT and compares their logits with those of golden cases. Exits 1 when any differ."""

import argparse
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

# That of the golden cases.
TOLERANCE = 5e-5

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", nargs=2, type=Path, action="append", default=[], metavar=("EXPORT", "CASE"))
parser.add_argument("--adapter", nargs=2, type=Path, action="append", default=[], metavar=("EXPORT", "CASE"))
arguments = parser.parse_args()


def load(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def difference(model: torch.nn.Module, case: Path) -> float:
    """The largest of the first row, where it is not padding."""
    batches, expected = load_file(case / "batches.safetensors"), load_file(case / "expected.safetensors")
    row = {name: batches[name][0, :1] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = model(**row).logits[0]
    return (logits - expected["logits"])[row["attention_mask"][0].bool()].abs().max().item()


differences = []
print(f"{'case':<20} {'class':<24} {'export':<12} logits differ by ({TOLERANCE:.0e} is allowed)")
for kind, exports in [("model", arguments.model), ("adapter", arguments.adapter)]:
    for export, case in exports:
        model = load(export if kind == "model" else case)
        name = type(model).__name__
        if kind == "adapter":
            model = PeftModel.from_pretrained(model, export).eval()
        differences.append(difference(model, case))
        print(f"{case.name:<20} {name:<24} {export.name:<12} {differences[-1]:.1e}")
# Without any, and with a difference that is no number, too.
sys.exit(0 if differences and all(difference <= TOLERANCE for difference in differences) else 1)
