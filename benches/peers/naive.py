"""How the usual template does it: tensor parallel decoder linears, everything else replicated, defaults elsewhere.

Embedding and head are whole on every rank, so each computes and holds all logits. Parameters, gradients, their reduction and
AdamW's moments are bf16, as in templates that load the model in bf16: there are no fp32 master weights. FSDP2 is applied
only where there is more than one data parallel rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from clipping import clip_grad_norm
from model import IGNORED, Qwen2, initial_values, shift
from workload import LEARNING_RATE, MAX_GRAD_NORM, WEIGHT_DECAY, Workload, main

TENSOR_PARALLEL_PLAN = {
    "self_attn.q_proj": ColwiseParallel,
    "self_attn.k_proj": ColwiseParallel,
    "self_attn.v_proj": ColwiseParallel,
    "self_attn.o_proj": RowwiseParallel,
    "mlp.gate_proj": ColwiseParallel,
    "mlp.up_proj": ColwiseParallel,
    "mlp.down_proj": RowwiseParallel,
}


class NaiveTrainer:
    def __init__(self, workload: Workload) -> None:
        mesh = init_device_mesh("cpu", (workload.dp, workload.tp), mesh_dim_names=("dp", "tp"))
        self.model = Qwen2(workload.config).bfloat16()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(initial_values(name, parameter.shape, workload.config, workload.seed))
        for layer in self.model.layers:
            if workload.tp > 1:
                plan = {name: style() for name, style in TENSOR_PARALLEL_PLAN.items()}
                parallelize_module(layer, mesh["tp"], plan)
        if workload.dp > 1:
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
            for layer in self.model.layers:
                fully_shard(layer, mesh=mesh["dp"], mp_policy=policy)
            fully_shard(self.model, mesh=mesh["dp"], mp_policy=policy)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, foreach=False
        )

    def step(self, ids: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(ids)
            loss = F.cross_entropy(logits.float().flatten(0, 1), shift(ids).flatten(), ignore_index=IGNORED)
        loss.backward()
        clip_grad_norm(self.model.parameters(), MAX_GRAD_NORM, foreach=False)
        self.optimizer.step()
        return loss.detach()


if __name__ == "__main__":
    main("naive", __doc__, NaiveTrainer)
