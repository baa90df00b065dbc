"""Whether a cluster can hold the workers, and on which nodes: pure arithmetic over what Ray says about nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Resources = Mapping[str, float]

# Ray counts resources in ten-thousandths.
_EPSILON = 1e-6


@dataclass(frozen=True)
class Node:
    """A node that is alive."""

    node_id: str
    resources: Resources

    def room_for(self, per_worker: Resources) -> int:
        """How many workers fit."""
        counts = [
            int((self.resources.get(name, 0.0) + _EPSILON) // amount)
            for name, amount in per_worker.items()
            if amount > 0
        ]
        return min(counts, default=2**31)


def shortage(nodes: Sequence[Node], per_worker: Resources, num_workers: int) -> str | None:
    """What is missing in words, or `None` when all workers fit."""
    room = sum(min(node.room_for(per_worker), num_workers) for node in nodes)
    if room >= num_workers:
        return None
    wanted = ", ".join(f"{amount:g} {name}" for name, amount in per_worker.items() if amount > 0)
    lacking = []
    for name, amount in per_worker.items():
        total = sum(node.resources.get(name, 0.0) for node in nodes)
        if total + _EPSILON < amount * num_workers:
            lacking.append(f"{amount * num_workers - total:g} {name} more (it has {total:g})")
    missing = " and ".join(lacking) if lacking else "nodes on which that much is free together"
    return (
        f"{num_workers} workers with {wanted} each do not fit: the cluster's {len(nodes)} nodes have room for {room}; "
        f"missing: {missing}. Ask for less with resources_per_worker, use fewer workers, or add nodes."
    )


def place_rows(nodes: Sequence[Node], per_worker: Resources, num_workers: int, tp_size: int) -> list[str] | None:
    """A node for every worker, so that tensor parallel rows stay within nodes and few nodes are used.

    Returns:
        The node ids in the order of workers, row by row; `None` when some row does not fit on any node.
    """
    room = {node.node_id: node.room_for(per_worker) // tp_size for node in nodes}
    rows = num_workers // tp_size
    chosen: list[str] = []
    while rows > 0:
        # The smallest node that takes all that is left, or else the largest: few nodes, and large ones stay free.
        enough = [node for node, space in room.items() if space >= rows]
        node = min(enough, key=room.__getitem__) if enough else max(room, key=room.__getitem__, default=None)
        if node is None or room[node] == 0:
            return None
        taken = min(room.pop(node), rows)
        chosen += [node] * (taken * tp_size)
        rows -= taken
    return chosen
