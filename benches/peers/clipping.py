"""Clipping by the global norm where some gradients are plain tensors, or distributed over different meshes.

PyTorch's own function stacks the norms of all gradients, and tensors of different meshes cannot be stacked; joining one norm
per mesh is the usual way around that.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float, foreach: bool) -> Tensor:
    """Scales the gradients in place; their norm before that."""
    groups = by_mesh(parameters)
    norms = []
    for group in groups:
        norm = get_total_norm([parameter.grad for parameter in group], foreach=foreach)
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    total = torch.linalg.vector_norm(torch.stack(norms))
    for group in groups:
        clip_grads_with_norm_(group, max_norm, total, foreach=foreach)
    return total


def by_mesh(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """The parameters in groups that list operations accept."""
    groups = defaultdict(list)
    for parameter in parameters:
        groups[parameter.device_mesh if isinstance(parameter, DTensor) else None].append(parameter)
    return list(groups.values())
