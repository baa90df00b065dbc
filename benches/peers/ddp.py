"""Plain data parallelism as PyTorch's documentation has it: DistributedDataParallel, autocast to bf16, fused AdamW.

Every rank holds the whole model, its gradient and its optimizer state in fp32 (ZeRO-0); gradients are all-reduced in buckets
while backward goes on. There is no tensor parallelism: `--tp` must be 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from model import IGNORED, Qwen2, initial_values, shift
from workload import LEARNING_RATE, MAX_GRAD_NORM, WEIGHT_DECAY, Workload, main


class DdpTrainer:
    def __init__(self, workload: Workload) -> None:
        if workload.tp > 1:
            raise SystemExit("ddp.py has no tensor parallelism: --tp must be 1")
        model = Qwen2(workload.config)
        model.tie_head()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(initial_values(name, parameter.shape, workload.config, workload.seed))
        self.model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
        )

    def step(self, ids: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = self.model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), shift(ids).flatten(), ignore_index=IGNORED)
        loss.backward()
        clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM, foreach=True)
        self.optimizer.step()
        return loss.detach()


if __name__ == "__main__":
    main("ddp", __doc__, DdpTrainer)
