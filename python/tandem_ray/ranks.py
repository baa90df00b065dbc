"""Which worker gets which rank: pure arithmetic, no Ray.

Ranks form a mesh of tp_size x dp_size, `rank = dp_rank * tp_size + tp_rank`: a tensor parallel row is `tp_size` ranks
in a sequence. Ray numbers its workers node by node, so a node with an odd number of them would split a row of two
although the row could have stayed on one node. Rows are therefore formed first, and ranks follow from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tandem_ray.errors import ConfigError


@dataclass(frozen=True)
class RankPlace:
    """One worker's place in the run, in torchrun's terms."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int

    def variables(self) -> dict[str, str]:
        """The place as torchrun's environment variables."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "NODE_RANK": str(self.node_rank),
        }


@dataclass(frozen=True)
class RankLayout:
    """The places of all workers, in Ray's order, and the rows that could not be kept on one node."""

    places: tuple[RankPlace, ...]
    # By row: the nodes that it spans.
    straddling: dict[int, tuple[str, ...]]

    def warning(self, tp_size: int) -> str | None:
        """What to tell the user about rows that straddle nodes; `None` when there are none."""
        if not self.straddling:
            return None
        nodes = max(place.node_rank for place in self.places) + 1
        rows = ", ".join(str(row) for row in self.straddling)
        return (
            f"tensor parallel rows {rows} straddle nodes: {len(self.places)} workers on {nodes} nodes cannot form "
            f"rows of tp_size {tp_size} within a node. Every layer then communicates over the network. Choose a "
            "tp_size that divides the number of workers on each node."
        )


def lay_out(nodes: Sequence[str], tp_size: int) -> RankLayout:
    """Gives ranks to workers.

    Args:
        nodes: The node of each worker, in Ray's order of workers.
        tp_size: Ranks in a row.

    Returns:
        Each worker's place, in the order of `nodes`. As few rows as possible straddle nodes, and Ray's first worker has
        rank 0, because Ray takes the run's metrics from it.

    Raises:
        ConfigError: The workers do not form whole rows.
    """
    if tp_size < 1 or len(nodes) % tp_size != 0:
        raise ConfigError(f"{len(nodes)} workers do not form rows of tp_size {tp_size}")
    rows = _rows(nodes, tp_size)
    order = [worker for row in rows for worker in row]
    node_ranks: dict[str, int] = {}
    local_ranks: dict[str, int] = {}
    places: dict[int, RankPlace] = {}
    for rank, worker in enumerate(order):
        node = nodes[worker]
        local_rank = local_ranks.get(node, 0)
        local_ranks[node] = local_rank + 1
        places[worker] = RankPlace(
            rank=rank,
            world_size=len(nodes),
            local_rank=local_rank,
            local_world_size=nodes.count(node),
            node_rank=node_ranks.setdefault(node, len(node_ranks)),
        )
    spans = {index: tuple(dict.fromkeys(nodes[worker] for worker in row)) for index, row in enumerate(rows)}
    return RankLayout(
        places=tuple(places[worker] for worker in range(len(nodes))),
        straddling={index: span for index, span in spans.items() if len(span) > 1},
    )


def _rows(nodes: Sequence[str], tp_size: int) -> list[list[int]]:
    by_node: dict[str, list[int]] = {}
    for worker, node in enumerate(nodes):
        by_node.setdefault(node, []).append(worker)
    whole: list[list[int]] = []
    left: list[int] = []
    for workers in by_node.values():
        fitting = len(workers) - len(workers) % tp_size
        whole += [workers[start : start + tp_size] for start in range(0, fitting, tp_size)]
        left += workers[fitting:]
    mixed = [left[start : start + tp_size] for start in range(0, len(left), tp_size)]
    return sorted(whole + mixed, key=lambda row: 0 not in row)
