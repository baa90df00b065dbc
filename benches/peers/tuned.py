"""What PyTorch's documentation leads to: FSDP2 over DTensor, vocabulary parallel embedding, head and loss, fused AdamW.

Parameters are kept, reduced and updated in fp32 (the master weights) and cast to bf16 for compute by FSDP2's mixed precision
policy, which is why the model is wrapped even where there is one data parallel rank. It starts on the meta device, and no
rank ever holds a whole model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, loss_parallel, parallelize_module

from clipping import by_mesh, clip_grad_norm
from model import IGNORED, Qwen2, initial_values, shift
from naive import TENSOR_PARALLEL_PLAN
from workload import LEARNING_RATE, MAX_GRAD_NORM, WEIGHT_DECAY, Workload, main


class TunedTrainer:
    def __init__(self, workload: Workload) -> None:
        mesh = init_device_mesh("cpu", (workload.dp, workload.tp), mesh_dim_names=("dp", "tp"))
        with torch.device("meta"):
            self.model = Qwen2(workload.config)
        self.tensor_parallel = workload.tp > 1
        if self.tensor_parallel:
            self.cut_by_tensor_parallelism(mesh["tp"])
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for layer in self.model.layers:
            fully_shard(layer, mesh=mesh["dp"], mp_policy=policy)
        fully_shard(self.model, mesh=mesh["dp"], mp_policy=policy)
        self.initialize(workload)
        # One group per mesh, because a fused update is one list operation.
        self.optimizer = torch.optim.AdamW(
            [{"params": group} for group in by_mesh(self.model.parameters())],
            lr=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )

    def cut_by_tensor_parallelism(self, mesh: torch.distributed.DeviceMesh) -> None:
        for layer in self.model.layers:
            parallelize_module(layer, mesh, {name: style() for name, style in TENSOR_PARALLEL_PLAN.items()})
        vocabulary_parallel = {
            "embed_tokens": RowwiseParallel(input_layouts=Replicate()),
            "lm_head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False),
        }
        parallelize_module(self.model, mesh, vocabulary_parallel)
        self.model.tie_head()

    @torch.no_grad()
    def initialize(self, workload: Workload) -> None:
        self.model.to_empty(device="cpu")
        self.model.tie_head()
        for name, parameter in self.model.named_parameters():
            values = initial_values(name, parameter.shape, workload.config, workload.seed)
            if isinstance(parameter, DTensor):
                # Every rank computes the same values, so nothing needs to be sent.
                values = distribute_tensor(
                    values, parameter.device_mesh, parameter.placements, src_data_rank=None
                )
            parameter.copy_(values)

    def step(self, ids: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        if self.tensor_parallel:
            with loss_parallel():
                loss = self.loss(ids)
                loss.backward()
            loss = loss.full_tensor()
        else:
            loss = self.loss(ids)
            loss.backward()
        clip_grad_norm(self.model.parameters(), MAX_GRAD_NORM, foreach=True)
        self.optimizer.step()
        return loss.detach()

    def loss(self, ids: Tensor) -> Tensor:
        logits = self.model(ids)
        return F.cross_entropy(logits.flatten(0, 1).float(), shift(ids).flatten(), ignore_index=IGNORED)


if __name__ == "__main__":
    main("tuned", __doc__, TunedTrainer)
