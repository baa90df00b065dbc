"""The built binaries on Ray: they must not be missing, and must train exactly as under the local controller."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tandem_ray import ConfigError, TandemTrainer

pytestmark = pytest.mark.usefixtures("one_node")

ROOT = Path(__file__).parents[2]
NAMES = ("train_fsdp", "train_deepspeed")
STEPS = 6
FLAGS: dict[str, Any] = {
    "model_name": str(ROOT / "demo" / "model"),
    "init": "random",
    "dataset_name": str(ROOT / "demo" / "data" / "kjv.txt"),
    "seq_length": 64,
    "batch_size": 2,
    "max_steps": STEPS,
    "learning_rate": 1e-3,
    "dtype": "fp32",
    "log_interval": 1,
}


@pytest.fixture(scope="module")
def binaries() -> Path:
    """The folder of the built binaries. That there are none is a failure: these tests are never skipped."""
    given = os.environ.get("TANDEM_REAL_BIN_DIR")
    folders = [Path(given)] if given else [ROOT / "target/release", ROOT / "target/debug"]
    built = [folder for folder in folders if all((folder / name).exists() for name in NAMES)]
    if not built:
        pytest.fail("no binaries: run `cargo build -p tandem-cli`, or set TANDEM_REAL_BIN_DIR to their folder")
    return max(built, key=lambda folder: (folder / NAMES[0]).stat().st_mtime)


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
def test_losses_on_ray_are_those_of_the_local_controller_bit_for_bit(
    binaries: Path, make_trainer: Callable[..., TandemTrainer], tmp_path: Path, strategy: str
) -> None:
    binary = binaries / f"train_{strategy}"
    mesh = ["--tp_size", "2", "--dp_size", "2", "--num_workers", "4"]
    flags = [f"--{name}={value}" for name, value in FLAGS.items()]
    here = ["--storage_path", str(tmp_path), "--experiment_name", "local"]
    local = subprocess.run([str(binary), *mesh, *flags, *here], capture_output=True, text=True, check=False)
    assert local.returncode == 0, local.stderr

    result = make_trainer(strategy=strategy, mesh=(2, 2), binary=str(binary), scaling=None, **FLAGS).fit()

    expected = losses(tmp_path / "local")
    assert len(expected) == STEPS
    assert losses(tmp_path / "run") == expected
    assert expected[-1] < expected[0], "something is learnt"
    assert result.metrics is not None
    assert result.metrics["step"] == STEPS
    assert result.metrics["loss"] == expected[-1]


def test_a_flag_that_the_program_refuses_is_refused_on_the_driver(
    binaries: Path, make_trainer: Callable[..., TandemTrainer]
) -> None:
    with pytest.raises(ConfigError, match="train_fsdp refuses its flags"):
        make_trainer(binary=str(binaries / "train_fsdp"), **{**FLAGS, "dtype": "fp8"})
