"""Records tiny models of what published configs rarely say, with docs/record_case.py, each as a case in a folder of its own.

Usage: record_variants.py FOLDER
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[3] / "docs"))
import record_case

SIZES = {
    "vocab_size": 101,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # In the text, and the end of it: its embedding is trained as any other.
    "pad_token_id": 2,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.5],
    "long_factor": [2.0, 6.0],
}
VARIANTS = {
    "gemma3_capped": (
        "gemma3_text",
        {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0, "sliding_window": 5},
    ),
    "gemma2_without_caps": ("gemma2", {"final_logit_softcapping": None, "attn_logit_softcapping": None}),
    "granite_biased": ("granite", {"attention_bias": True, "mlp_bias": True, "logits_scaling": 3.0}),
    "llama_biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mixtral": ("mixtral", {"num_local_experts": 5}),
    "olmo2_biased": ("olmo2", {"attention_bias": True}),
    "olmo3": ("olmo3", {"sliding_window": 5}),
    # Rows of 12 tokens, beyond the length of pre-training, and within it.
    "phi3_long": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 8}),
    "phi3_short": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16}),
    "qwen3_moe": (
        "qwen3_moe",
        {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "mlp_only_layers": [1]},
    ),
    # All layers with positions: without them, the bias of the keys has no gradient but rounding, and Adam makes steps of it.
    "smollm3_biased": ("smollm3", {"attention_bias": True, "mlp_bias": True, "no_rope_layers": [1, 1, 1]}),
}


def make(folder: Path, model_type: str, changes: dict) -> None:
    """A model whose every part shows: scores of order 1, biases and norms that are not at their defaults."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **(SIZES | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.dim() == 1 else 1.2 / parameter.shape[-1] ** 0.5
            parameter += spread * torch.randn_like(parameter)
    model.save_pretrained(folder)


folder = Path(sys.argv[1])
ids = torch.randint(0, SIZES["vocab_size"], (3, 4, 12), generator=torch.Generator().manual_seed(0))
ids[:, :, 5] = SIZES["pad_token_id"]
save_file(
    {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}, folder / "batches.safetensors"
)
for name, (model_type, changes) in VARIANTS.items():
    print(f"== {name}")
    make(folder / "models" / name, model_type, changes)
    sys.argv = ["record_case.py", "--model", str(folder / "models" / name), "--float64"]
    sys.argv += ["--batches", str(folder / "batches.safetensors"), "--output", str(folder / "cases" / name)]
    record_case.main()
