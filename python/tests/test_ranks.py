"""Rows stay on a node wherever they can."""

from itertools import chain

import pytest

from tandem_ray.errors import ConfigError
from tandem_ray.ranks import lay_out


def ranks(nodes: str, tp_size: int) -> list[int]:
    return [place.rank for place in lay_out(nodes, tp_size).places]


def test_even_nodes_keep_rays_order() -> None:
    assert ranks("aabb", 2) == [0, 1, 2, 3]
    assert ranks("aaaa", 4) == [0, 1, 2, 3]
    assert lay_out("aabb", 2).straddling == {}
    assert lay_out("aabb", 2).warning(2) is None


def test_odd_nodes_share_one_row_instead_of_splitting_all_that_follow() -> None:
    layout = lay_out("aaabbc", 2)
    assert [place.rank for place in layout.places] == [0, 1, 4, 2, 3, 5]
    assert layout.straddling == {2: ("a", "c")}
    warning = layout.warning(2)
    assert warning is not None and "rows 2 straddle" in warning and "tp_size 2" in warning


def test_a_row_larger_than_a_node_straddles_and_says_so() -> None:
    layout = lay_out("aabb", 4)
    assert [place.rank for place in layout.places] == [0, 1, 2, 3]
    assert layout.straddling == {0: ("a", "b")}


def test_rays_first_worker_has_rank_0_even_in_a_mixed_row() -> None:
    layout = lay_out("abbb", 2)
    assert layout.places[0].rank == 0
    assert layout.straddling == {0: ("a", "b")}


@pytest.mark.parametrize("tp_size", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("nodes", ["a" * 12, "aaabbbcccddd", "aaaaabbbbbcc", "abcdefghijkl", "abbbbbbbbbbb"])
def test_every_rank_is_given_once_and_the_variables_agree(nodes: str, tp_size: int) -> None:
    layout = lay_out(nodes, tp_size)
    assert sorted(place.rank for place in layout.places) == list(range(12))
    assert layout.places[0].rank == 0
    for node in set(nodes):
        here = sorted(
            (place for place, other in zip(layout.places, nodes, strict=True) if other == node),
            key=lambda place: place.rank,
        )
        assert [place.local_rank for place in here] == list(range(len(here)))
        assert {place.local_world_size for place in here} == {len(here)}
        assert len({place.node_rank for place in here}) == 1
    # The contract of the workers: ranks are counted host by host.
    assert all(place.local_rank <= place.rank for place in layout.places)
    # No layout could have fewer straddling rows than the workers that are left over on the nodes make.
    left = sum(nodes.count(node) % tp_size for node in set(nodes))
    assert len(layout.straddling) <= -(-left // tp_size)
    assert all(len(span) > 1 for span in layout.straddling.values())
    assert not set(chain.from_iterable(layout.straddling.values())) - set(nodes)


def test_workers_that_form_no_whole_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 workers do not form rows of tp_size 2"):
        lay_out("aaa", 2)
