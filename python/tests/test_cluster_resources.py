"""Whether and where workers fit."""

from __future__ import annotations

import pytest

from tandem_ray.cluster_resources import Node, place_rows, shortage

ONE_GPU = {"CPU": 1.0, "GPU": 1.0}


def gpus(**nodes: int) -> list[Node]:
    return [Node(name, {"CPU": 64.0, "GPU": float(count), "memory": 1e12}) for name, count in nodes.items()]


def test_what_fits_lacks_nothing() -> None:
    assert shortage(gpus(a=2, b=2), ONE_GPU, 4) is None
    assert shortage([Node("a", {"CPU": 0.3})], {"CPU": 0.1}, 3) is None, "fractions are counted exactly"


@pytest.mark.parametrize(
    ("per_worker", "why"),
    [
        (ONE_GPU, "4 workers with 1 CPU, 1 GPU each do not fit: .* 2 nodes have room for 3; missing: 1 GPU more"),
        ({"CPU": 40.0}, "room for 2; missing: 32 CPU more \\(it has 128\\)"),
        ({"CPU": 1.0, "TPU": 1.0}, "room for 0; missing: 4 TPU more \\(it has 0\\)"),
        ({"CPU": 30.0, "memory": 6e11}, "room for 2; missing: 4e\\+11 memory more"),
    ],
)
def test_what_is_missing_is_said(per_worker: dict[str, float], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        raise ValueError(shortage(gpus(a=2, b=1), per_worker, 4))


def test_resources_that_lie_on_different_nodes_are_told_apart_from_too_few() -> None:
    nodes = [Node("a", {"CPU": 8.0}), Node("b", {"CPU": 1.0, "GPU": 4.0})]
    missing = shortage(nodes, {"CPU": 2.0, "GPU": 1.0}, 4)
    assert missing is not None
    assert "room for 0; missing: nodes on which that much is free together" in missing
    empty = shortage([], ONE_GPU, 1)
    assert empty is not None and "0 nodes have room for 0" in empty


@pytest.mark.parametrize(
    ("nodes", "tp_size", "placed"),
    [
        ({"a": 3, "b": 3}, 2, "aabb"),
        ({"a": 8, "b": 4}, 2, "bbbb"),
        ({"a": 3, "b": 5}, 2, "bbbb"),
        ({"a": 2, "b": 3}, 2, "bbaa"),
        ({"a": 4}, 4, "aaaa"),
        ({"a": 3, "b": 1}, 2, None),
        ({"a": 2, "b": 2}, 4, None),
        ({}, 1, None),
    ],
)
def test_rows_are_placed_on_few_nodes_and_never_across(nodes: dict[str, int], tp_size: int, placed: str | None) -> None:
    found = place_rows(gpus(**nodes), ONE_GPU, 4, tp_size)
    assert (None if found is None else sorted(found)) == (None if placed is None else sorted(placed))
