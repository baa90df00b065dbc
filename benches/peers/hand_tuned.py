"""What someone who knows PyTorch well writes for CPUs, when the documented way is too slow.

- Plain tensors and one custom autograd function per collective, instead of DTensor and FSDP2, whose dispatch costs time.
- q, k, v and gate, up are one matrix each. Parameters are bf16; the fp32 master weights are the optimizer's.
- Half a layer at a time is compiled by inductor, which fuses norms, RoPE and SwiGLU into vectorised loops.
- The head's loss and gradients are computed in chunks of rows in the forward pass, so that full logits never exist.
- Clipping, AdamW and the cast to bf16 are one compiled pass over memory.
- Data parallel ranks each update a part of the parameters (ZeRO-1), with gradients reduced in fp32.
"""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from model import IGNORED, Qwen2Config, initial_values, rope_tables, rotate, shift
from workload import LEARNING_RATE, MAX_GRAD_NORM, WEIGHT_DECAY, Workload, main

BETAS = (0.9, 0.999)
EPS = 1e-8
HEAD_CHUNK_ROWS = 512


class SumGradients(torch.autograd.Function):
    """Where a replicated tensor enters sharded computation: nothing forward, a sum over ranks backward."""

    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class SumOutputs(torch.autograd.Function):
    """Where sharded computation ends: a sum over ranks forward, nothing backward."""

    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        dist.all_reduce(x, group=group)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


@torch.compile
def attention(x: Tensor, norm: Tensor, qkv: Tensor, bias: Tensor, out: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The first half of a layer on this rank's heads; 7 queries share a key, as in Qwen2-0.5B."""
    heads = F.linear(F.rms_norm(x, norm.shape, norm, 1e-6), qkv, bias).unflatten(-1, (-1, 64)).transpose(1, 2)
    kv_heads = heads.shape[1] // 9
    q, k, v = heads.split((7 * kv_heads, kv_heads, kv_heads), dim=1)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    k, v = (t.repeat_interleave(7, dim=1) for t in (k, v))
    return F.linear(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2), out)


@torch.compile
def mlp(x: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The second half of a layer on this rank's columns."""
    gate, up = F.linear(F.rms_norm(x, norm.shape, norm, 1e-6), gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)


@torch.compile
def final_norm(x: Tensor, norm: Tensor) -> Tensor:
    return F.rms_norm(x, norm.shape, norm, 1e-6)


@torch.compile
def sum_of_exponentials(logits: Tensor, largest: Tensor) -> Tensor:
    return (logits.float() - largest[:, None]).exp().sum(-1)


@torch.compile
def softmax_gradient_(logits: Tensor, largest: Tensor, weights: Tensor) -> None:
    """Replaces logits by softmax times a weight per row."""
    logits.copy_((logits.float() - largest[:, None]).exp() * weights[:, None])


@torch.compile(dynamic=True)
def sum_of_squares(x: Tensor) -> Tensor:
    return x.float().square().sum()


@torch.compile(dynamic=True)
def adamw_(
    parameter: Tensor, gradient: Tensor, master: Tensor, first: Tensor, second: Tensor, scalars: Tensor
) -> None:
    """One pass: fp32 master weights and moments, and the bf16 parameter; `scalars` change with the step."""
    clip, correction1, correction2 = scalars.unbind()
    g = gradient.float() * clip
    m = first * BETAS[0] + g * (1 - BETAS[0])
    v = second * BETAS[1] + g * g * (1 - BETAS[1])
    update = (m / correction1) / ((v / correction2).sqrt() + EPS)
    new = master * (1 - LEARNING_RATE * WEIGHT_DECAY) - LEARNING_RATE * update
    first.copy_(m)
    second.copy_(v)
    master.copy_(new)
    parameter.copy_(new)


class VocabularyShard:
    """This rank's rows of the embedding, which is also the head; their gradient is not autograd's, but added up here."""

    def __init__(self, weight: Tensor, tp_rank: int, group: dist.ProcessGroup) -> None:
        self.weight = weight
        self.gradient: Tensor | None = None
        self.first_id = tp_rank * weight.shape[0]
        self.group = group

    def local(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Row numbers here, and whether they are here; those that are not become row 0."""
        rows = ids - self.first_id
        mine = (rows >= 0) & (rows < self.weight.shape[0])
        return rows.where(mine, 0), mine

    def embed(self, ids: Tensor) -> Tensor:
        rows, mine = self.local(ids)
        x = F.embedding(rows, self.weight) * mine[..., None]
        dist.all_reduce(x, group=self.group)
        return x

    def add_embedding_gradient(self, ids: Tensor, d_x: Tensor) -> None:
        rows, mine = self.local(ids)
        self.gradient.index_add_(0, rows[mine], d_x[mine])

    def loss_and_gradients(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss of `[rows, hidden]`, and its gradient; the weight's gradient is left in `self.gradient`."""
        valid = targets != IGNORED
        scale = valid / valid.sum()
        loss = torch.zeros(())
        d_hidden = torch.empty_like(hidden)
        chunks = (t.split(HEAD_CHUNK_ROWS) for t in (hidden, targets, scale, d_hidden))
        self.gradient = None
        for x, target, weight, d_x in zip(*chunks, strict=True):
            logits = x @ self.weight.T
            largest = logits.amax(-1).float()
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
            column, mine = self.local(target)
            at_target = logits.gather(-1, column[:, None]).squeeze(-1).float() * mine
            sums = torch.stack((sum_of_exponentials(logits, largest), at_target))
            dist.all_reduce(sums, group=self.group)
            exponentials, at_target = sums
            loss += ((exponentials.log() + largest - at_target) * weight).sum()
            softmax_gradient_(logits, largest, weight / exponentials)
            logits[torch.arange(len(target)), column] -= (weight * mine).to(logits.dtype)
            torch.mm(logits, self.weight, out=d_x)
            if self.gradient is None:
                self.gradient = logits.T @ x
            else:
                self.gradient.addmm_(logits.T, x)
        dist.all_reduce(d_hidden, group=self.group)
        return loss, d_hidden


class ShardedParameters:
    """bf16 parameters as views of one flat buffer, of whose elements each data parallel rank updates a range."""

    def __init__(self, values: dict[str, Tensor], group: dist.ProcessGroup) -> None:
        self.group = group
        self.dp = dist.get_world_size(group)
        sizes = [value.numel() for value in values.values()]
        self.range_size = math.ceil(sum(sizes) / self.dp)
        self.flat = torch.zeros(self.range_size * self.dp, dtype=torch.bfloat16)
        self.views = {
            name: view.view_as(value)
            for (name, value), view in zip(values.items(), self.flat[: sum(sizes)].split(sizes), strict=True)
        }
        for name, value in values.items():
            self.views[name].copy_(value)
        start = dist.get_rank(group) * self.range_size
        self.mine = self.flat[start : start + self.range_size]
        self.master = self.mine.float()
        self.first = torch.zeros_like(self.master)
        self.second = torch.zeros_like(self.master)
        self.whole_gradient = torch.zeros(self.flat.shape) if self.dp > 1 else None
        self.gradient = torch.zeros_like(self.master) if self.dp > 1 else None

    def reduce(self, gradients: dict[str, Tensor]) -> list[tuple[slice, Tensor]]:
        """The gradient of this rank's range, in pieces that begin and end where it says."""
        if self.dp == 1:
            pieces, start = [], 0
            for name, view in self.views.items():
                pieces.append((slice(start, start + view.numel()), gradients[name].flatten()))
                start += view.numel()
            return pieces
        start = 0
        for name, view in self.views.items():
            self.whole_gradient[start : start + view.numel()].view_as(view).copy_(gradients[name])
            start += view.numel()
        dist.reduce_scatter_tensor(self.gradient, self.whole_gradient, group=self.group)
        self.gradient /= self.dp
        return [(slice(0, self.range_size), self.gradient)]

    def update(self, pieces: list[tuple[slice, Tensor]], scalars: Tensor) -> None:
        for where, gradient in pieces:
            adamw_(
                self.mine[where], gradient, self.master[where], self.first[where], self.second[where], scalars
            )
        if self.dp > 1:
            dist.all_gather_into_tensor(self.flat, self.mine, group=self.group)


class HandTunedTrainer:
    def __init__(self, workload: Workload) -> None:
        mesh = init_device_mesh("cpu", (workload.dp, workload.tp), mesh_dim_names=("dp", "tp"))
        self.config = workload.config
        self.tp_group, dp_group = mesh["tp"].get_group(), mesh["dp"].get_group()
        tp_rank = mesh["tp"].get_local_rank()
        # The gradient norm counts what every rank of a row has only once.
        self.counts_replicated = tp_rank == 0
        values = sharded_values(self.config, workload.seed, tp_rank, workload.tp)
        self.parameters = ShardedParameters(values, dp_group)
        self.leaves = {
            name: view.requires_grad_() for name, view in self.parameters.views.items() if name != "embedding"
        }
        self.vocabulary = VocabularyShard(self.parameters.views["embedding"], tp_rank, self.tp_group)
        self.rope = rope_tables(self.config, workload.seq, torch.bfloat16)
        self.steps = 0

    def step(self, ids: Tensor) -> Tensor:
        x = self.vocabulary.embed(ids).requires_grad_()
        hidden = self.decoder(x)
        rows = hidden.detach().flatten(0, 1)
        loss, d_hidden = self.vocabulary.loss_and_gradients(rows, shift(ids).flatten())
        hidden.backward(d_hidden.view_as(hidden))
        self.vocabulary.add_embedding_gradient(ids.flatten(), x.grad.flatten(0, 1))
        with torch.no_grad():
            self.update()
        return loss

    def decoder(self, x: Tensor) -> Tensor:
        p = self.leaves
        for i in range(self.config.layers):
            entered = SumGradients.apply(x, self.tp_group)
            attended = attention(
                entered, p[f"{i}.norm1"], p[f"{i}.qkv"], p[f"{i}.qkv_bias"], p[f"{i}.out"], *self.rope
            )
            x = x + SumOutputs.apply(attended, self.tp_group)
            entered = SumGradients.apply(x, self.tp_group)
            x = x + SumOutputs.apply(
                mlp(entered, p[f"{i}.norm2"], p[f"{i}.gate_up"], p[f"{i}.down"]), self.tp_group
            )
        return final_norm(x, p["norm"])

    def update(self) -> None:
        gradients = {name: leaf.grad for name, leaf in self.leaves.items()}
        gradients["embedding"] = self.vocabulary.gradient
        self.sum_partial(gradients)
        pieces = self.parameters.reduce(gradients)
        clip = MAX_GRAD_NORM / (self.gradient_norm(gradients, pieces) + 1e-6)
        self.steps += 1
        corrections = [1 - beta**self.steps for beta in BETAS]
        self.parameters.update(pieces, torch.tensor([min(1.0, clip), *corrections]))
        for leaf in self.leaves.values():
            leaf.grad = None

    def sum_partial(self, gradients: dict[str, Tensor]) -> None:
        """A layer's norms are replicated, but each rank's gradient is of its own heads and columns."""
        partial = [gradients[name] for name in gradients if name.endswith(("norm1", "norm2"))]
        joined = torch.cat(partial)
        dist.all_reduce(joined, group=self.tp_group)
        for gradient, total in zip(partial, joined.split(self.config.hidden), strict=True):
            gradient.copy_(total)

    def gradient_norm(self, gradients: dict[str, Tensor], pieces: list[tuple[slice, Tensor]]) -> float:
        # After reduction over data parallel ranks, each holds a range in which replicated parameters may lie.
        total = sum(sum_of_squares(gradient) for _, gradient in pieces)
        if not self.counts_replicated:
            total = total - self.replicated_squares(pieces)
        dist.all_reduce(total)
        return total.sqrt().item()

    def replicated_squares(self, pieces: list[tuple[slice, Tensor]]) -> Tensor:
        """The part of this rank's range that other ranks of the row have too."""
        total, start = torch.zeros(()), 0
        offset = dist.get_rank(self.parameters.group) * self.parameters.range_size
        for name, view in self.parameters.views.items():
            low, high = start - offset, start - offset + view.numel()
            start += view.numel()
            if not name.endswith(("norm", "norm1", "norm2")):
                continue
            for where, gradient in pieces:
                overlap = gradient[max(low, where.start) - where.start : max(0, min(high, where.stop) - where.start)]
                total += overlap.float().square().sum()
        return total


def sharded_values(config: Qwen2Config, seed: int, tp_rank: int, tp: int) -> dict[str, Tensor]:
    """The same start as the other programs', cut and joined."""

    def whole(name: str, *shape: int) -> Tensor:
        return initial_values(name, torch.Size(shape), config, seed)

    def rows(name: str, *shape: int) -> Tensor:
        return whole(name, *shape).chunk(tp)[tp_rank]

    def columns(name: str, *shape: int) -> Tensor:
        return whole(name, *shape).chunk(tp, dim=1)[tp_rank]

    hidden, q, kv = config.hidden, config.heads * config.head_dim, config.kv_heads * config.head_dim
    values = {}
    for i in range(config.layers):
        attn, mlp_ = f"layers.{i}.self_attn", f"layers.{i}.mlp"
        projections = (("q_proj", q), ("k_proj", kv), ("v_proj", kv))
        values |= {
            f"{i}.norm1": torch.ones(hidden),
            f"{i}.qkv": torch.cat([rows(f"{attn}.{name}.weight", n, hidden) for name, n in projections]),
            f"{i}.qkv_bias": torch.cat([rows(f"{attn}.{name}.bias", n) for name, n in projections]),
            f"{i}.out": columns(f"{attn}.o_proj.weight", hidden, q),
            f"{i}.norm2": torch.ones(hidden),
            f"{i}.gate_up": torch.cat(
                [rows(f"{mlp_}.{name}.weight", config.intermediate, hidden) for name in ("gate_proj", "up_proj")]
            ),
            f"{i}.down": columns(f"{mlp_}.down_proj.weight", hidden, config.intermediate),
        }
    values["norm"] = torch.ones(hidden)
    values["embedding"] = rows("embed_tokens.weight", config.vocabulary, hidden)
    return values


if __name__ == "__main__":
    main("hand_tuned", __doc__, HandTunedTrainer)
