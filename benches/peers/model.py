"""Qwen2 (0.5B) as a plain PyTorch module, with the structure and the names of Hugging Face's.

It knows nothing about parallelism: the programs beside it shard it. Heads are counted from the width of what a projection
returns, so that the same code runs on a shard of the heads.
"""

import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100  # a target that has no loss


@dataclass(frozen=True)
class Qwen2Config:
    """Sizes of Qwen2-0.5B, unless told otherwise: models like Llama differ in these numbers only."""

    layers: int
    hidden: int = 896
    heads: int = 14
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 4864
    vocabulary: int = 151_936
    rope_theta: float = 1e6
    rms_eps: float = 1e-6
    init_std: float = 0.02
    attention_bias: bool = True
    tied: bool = True


class Attention(nn.Module):
    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.queries_per_kv = config.heads // config.kv_heads
        self.q_proj = nn.Linear(config.hidden, config.heads * config.head_dim, config.attention_bias)
        self.k_proj = nn.Linear(config.hidden, config.kv_heads * config.head_dim, config.attention_bias)
        self.v_proj = nn.Linear(config.hidden, config.kv_heads * config.head_dim, config.attention_bias)
        self.o_proj = nn.Linear(config.heads * config.head_dim, config.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.repeat_interleave(self.queries_per_kv, dim=1) for t in (k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(attended.transpose(1, 2).flatten(-2))


class Mlp(nn.Module):
    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.down_proj = nn.Linear(config.intermediate, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden, config.rms_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden, config.rms_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen2(nn.Module):
    """`[batch, seq]` token ids to `[batch, seq, vocabulary]` logits, with the output head tied to the embedding where the config says so."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, config.rms_eps)
        self.lm_head = nn.Linear(config.hidden, config.vocabulary, bias=False)
        self.tie_head()

    def tie_head(self) -> None:
        """To be called again after something has replaced the parameters of one of the two modules."""
        if self.config.tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        cos, sin = rope_tables(self.config, ids.shape[1], x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `[batch, heads, seq, head_dim]`, halves paired as in Hugging Face's models."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rope_tables(config: Qwen2Config, seq: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines, `[seq, head_dim]` each."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(seq, dtype=torch.float32), config.rope_theta**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def initial_values(name: str, shape: torch.Size, config: Qwen2Config, seed: int) -> Tensor:
    """The fp32 start of a parameter: a function of its name, so that all programs and meshes start alike."""
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
    return torch.empty(shape).normal_(0.0, config.init_std, generator=generator)


def shift(ids: Tensor) -> Tensor:
    """Targets of packed tokens: position t predicts token t + 1, and the last position predicts nothing."""
    return F.pad(ids[:, 1:], (0, 1), value=IGNORED)
