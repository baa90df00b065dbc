"""Loads an exported model with transformers and compares its logits with a golden case's. Exits 1 when they differ."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

exported, golden = Path(sys.argv[1]), Path(sys.argv[2])
batches = load_file(golden / "batches.safetensors")
expected = load_file(golden / "expected.safetensors")
model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
with torch.no_grad():
    logits = model(
        input_ids=batches["input_ids"][0, :1], attention_mask=batches["attention_mask"][0, :1]
    ).logits[0]
valid = batches["attention_mask"][0, 0].bool()
difference = (logits - expected["logits"])[valid].abs().max().item()
print(f"{type(model).__name__}: logits differ by {difference:.1e}, 5e-5 is allowed")
sys.exit(0 if difference <= 5e-5 else 1)
