"""A cluster that is started for one run has room for its workers."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tandem_ray.driver import cpus_of_local
from tandem_ray.request import parse_request


def cpus(num_workers: int, **ray: Any) -> int | None:
    request = {
        "entry_point": "train_fsdp",
        "num_workers": num_workers,
        "flags": {"tp_size": 1},
        "run": {"name": "run", "storage_path": "/runs"},
        "ray": ray,
    }
    return cpus_of_local(parse_request(json.dumps(request)))


def test_more_workers_than_cores_fit_into_a_cluster_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert cpus(4, address="local") == 4
    assert cpus(3, address="local", resources_per_worker={"CPU": 1.5}) == 5
    assert cpus(2, address="local") is None, "the machine has as many"
    assert cpus(4, address="local", resources_per_worker={"GPU": 1}) is None
    for address in ("auto", "10.0.0.1:6379"):
        assert cpus(4, address=address) is None, "what a cluster has is not ours to say"
