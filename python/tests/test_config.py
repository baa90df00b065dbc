"""What cannot work is refused on the driver, before Ray is even started."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
from conftest import FAKE_BIN

from tandem_ray import ConfigError, TandemTrainer, driver, train_config
from tandem_ray.options import DECIDED_BY_RAY, RayOptions, RunOptions
from tandem_ray.request import parse_request, schema
from tandem_ray.run_folder import run_dir
from tandem_ray.worker_spec import find_program


@pytest.fixture(autouse=True)
def nothing_is_scheduled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was scheduled")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(TandemTrainer, "fit", refuse)
    monkeypatch.setenv("TANDEM_BIN_DIR", str(FAKE_BIN))


def make(
    tmp_path: Path, *, strategy: str = "fsdp", scaling: dict[str, Any] | None = None, **flags: Any
) -> TandemTrainer:
    return TandemTrainer(
        strategy,
        {"tp_size": 2, "dp_size": 2, **flags},
        scaling_config=ray.train.ScalingConfig(**{"num_workers": 4, **(scaling or {})}),
        run_config=ray.train.RunConfig(name="run", storage_path=str(tmp_path)),
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"strategy": "megatron"}, "strategy is 'megatron'; it must be one of fsdp, deepspeed"),
        ({"tp_size": None}, "lacks tp_size"),
        ({"tp_size": 0}, "tp_size is 0; it must be a whole number, 1 or more"),
        ({"dp_size": "2"}, "dp_size is '2'; it must be a whole number"),
        ({"tp_size": 3}, "tp_size 3 x dp_size 2 is 6, but num_workers is 4"),
        ({"num_workers": 8}, "train_config has num_workers 8, but scaling_config has 4"),
        ({"strategy": "deepspeed", "zero_stage": 3}, "zero_stage is 3; it must be 0, 1 or 2"),
        ({"num_to_keep": 3}, "on Ray it is set with run_config=RunConfig"),
        ({"experiment_name": "x"}, "on Ray it is set with run_config=RunConfig"),
        ({"--steps": 3}, "'--steps', which is no flag; write it as in --help, without the dashes"),
        ({"steps": {"a": 1}}, "steps = {'a': 1}; it must be a string, a number or a boolean"),
        ({"stepps": 3}, "(?s)train_fsdp refuses its flags: .*--stepps"),
        ({"steps": "many"}, "(?s)train_fsdp refuses its flags: .*invalid int value: 'many'"),
        ({"resume_from": "gone"}, "there is nothing to resume: .*/gone has no checkpoint_manager_snapshot"),
        ({"resume_from": "../x"}, "must be the name of one folder"),
        ({"device": "cuda"}, "device is cuda, but use_gpu is not set"),
        ({"scaling": {"use_gpu": True}, "device": "cpu"}, "device is cpu, but use_gpu is set"),
        ({"scaling": {"use_gpu": True, "resources_per_worker": {"GPU": 2}}}, "2 GPU; every worker uses exactly one"),
        ({"scaling": {"num_workers": (2, 4)}}, "the mesh of a run does not change"),
        ({"scaling": {"num_workers": 0}}, "num_workers is 0"),
    ],
)
def test_a_trainer_that_cannot_work_is_not_made(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        make(tmp_path, **change)


def test_a_folder_with_a_run_is_neither_continued_silently_nor_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint_manager_snapshot.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a run already: pass resume_from='run'"):
        make(tmp_path)
    assert make(tmp_path, resume_from="run").run_config.name == "run"


def test_flags_become_a_command_line() -> None:
    flags: dict[str, train_config.FlagValue] = {
        "model_name": "a b",
        "packing": True,
        "autocast": False,
        "seed": 3,
        "learning_rate": 1e-5,
        "none": None,
    }
    assert train_config.to_args({**flags, "autotp_override": ["x=vocab", "y=colwise"]}) == (
        *("--model_name", "a b", "--packing", "true", "--autocast", "false", "--seed", "3"),
        *("--learning_rate", "1e-05", "--autotp_override", "x=vocab", "--autotp_override", "y=colwise"),
    )


def test_the_runs_folder_is_a_path_or_a_uri(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_dir("runs", "a") == str(tmp_path / "runs" / "a")
    assert run_dir("s3://bucket/runs", "a") == "s3://bucket/runs/a"


def test_a_program_that_is_missing_says_where_it_should_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_program("train_fsdp", None) == FAKE_BIN / "train_fsdp"
    with pytest.raises(ConfigError, match="/train_gan is not there on this machine"):
        find_program("train_gan", None)
    monkeypatch.delenv("TANDEM_BIN_DIR")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="install the package 'tandem' on every node"):
        find_program("train_gan", None)
    (tmp_path / "train_gan").write_text("")
    with pytest.raises(ConfigError, match="cannot be executed"):
        find_program("train_gan", str(tmp_path / "train_gan"))


GOOD: dict[str, Any] = {
    "entry_point": "train_fsdp",
    "num_workers": 4,
    "flags": {"tp_size": 2, "dp_size": 2},
    "run": {"name": "run", "storage_path": "/tmp/x"},
    "ray": {"address": "auto", "label_selector": {"zone": "a"}, "resources_per_worker": {"CPU": 2}},
}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"entry_point": "train_gan"}, "entry_point = 'train_gan'; it must be one of train_fsdp, train_deepspeed"),
        ({"entry_point": None}, "the request lacks entry_point"),
        ({"num_workers": "4"}, "num_workers = '4'; it must be a whole number, 1 or more"),
        ({"colour": "red"}, "the request has colour, which is unknown"),
        ({"run": {"name": "run"}}, "run lacks storage_path"),
        ({"run": {"storage_path": "/x"}}, "run needs either name, for a new run, or resume_from"),
        ({"run": {"storage_path": "/x", "name": "a", "resume_from": "b"}}, "run needs either name"),
        ({"run": {"storage_path": "/x", "name": "a", "max_failures": -2}}, "0 or more, or -1 for no limit"),
        ({"run": {"storage_path": "/x", "name": "a", "num_to_keep": 0}}, "num_to_keep = 0"),
        ({"run": {"storage_path": "/x", "name": "a", "checkpoint_score_order": "up"}}, "one of max, min"),
        ({"ray": {"placement_strategy": "TIGHT"}}, "one of PACK, SPREAD, STRICT_PACK, STRICT_SPREAD"),
        ({"ray": {"resources_per_worker": {"CPU": "2"}}}, 'amounts by name, such as {"CPU": 4'),
        ({"ray": {"resources_per_worker": {"CPU": -2}}}, "amounts by name"),
        ({"run": {"storage_path": "", "name": "a"}}, "storage_path = ''; it must be a string"),
        ({"ray": {"label_selector": {"zone": 1}}}, "values by label"),
        ({"ray": {"use_gpu": "yes"}}, "true or false"),
        ({"ray": {"stop_grace_s": 0}}, "a number of seconds above 0"),
        ({"ray": {"hang_timeout_s": -1}}, "a number of seconds, or 0 for no limit"),
        ({"ray": {"address": "ray://host:10001"}}, "over which Ray Train does not run"),
        ({"ray": []}, "ray = \\[\\]; it must be a JSON object"),
        ({"flags": {"tp_size": 2, "dp_size": 1}}, "tp_size 2 x dp_size 1 is 2, but num_workers is 4"),
        ({"flags": {"tp_size": 2, "dp_size": 2, "stepps": 1}}, "train_fsdp refuses its flags"),
    ],
)
def test_the_driver_refuses_a_bad_request_with_exit_code_2(
    change: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({**GOOD, **change})))
    assert driver.main([]) == 2
    printed = capsys.readouterr()
    outcome = json.loads(printed.out.splitlines()[-1])
    assert outcome["status"] == "failed" and outcome["exit_code"] == 2
    assert printed.err.startswith("error: ")
    with pytest.raises(ValueError, match=why):
        raise ValueError(outcome["error"])


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_what_is_no_request_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="the request"):
        parse_request(text)


def test_the_options_are_those_of_the_schema() -> None:
    described = schema()["properties"]
    for section, options in (("run", RunOptions), ("ray", RayOptions)):
        names = {option.name for option in dataclasses.fields(options)}
        assert names == set(described[section]["properties"])
    assert parse_request(json.dumps({**GOOD, "version": "0.1.0", "cluster": "ray", "binary": None})).num_workers == 4
    assert set(DECIDED_BY_RAY) == set(described["run"]["properties"]) - {"name", "resume_from"} | {"experiment_name"}


def test_a_good_request_reaches_rays_own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60")
    run = {
        "storage_path": str(tmp_path),
        "name": "run",
        "max_failures": 3,
        "num_to_keep": 2,
        "checkpoint_score_attribute": "loss",
        "checkpoint_score_order": "min",
    }
    cluster = {**GOOD["ray"], "placement_strategy": "SPREAD", "accelerator_type": "H100", "use_gpu": True}
    trainer = driver.trainer_for(parse_request(json.dumps({**GOOD, "run": run, "ray": cluster})))
    scaling, config = trainer.scaling_config, trainer.run_config
    assert (scaling.num_workers, scaling.use_gpu, scaling.placement_strategy) == (4, True, "SPREAD")
    assert (scaling.resources_per_worker, scaling.accelerator_type) == ({"CPU": 2.0}, "H100")
    assert scaling.label_selector == {"zone": "a"}
    assert (config.name, config.storage_path) == ("run", str(tmp_path))
    assert config.failure_config.max_failures == 3
    assert config.failure_config.controller_failure_limit == 9
    checkpoints = config.checkpoint_config
    assert (checkpoints.num_to_keep, checkpoints.checkpoint_score_attribute) == (2, "loss")
    assert checkpoints.checkpoint_score_order == "min"


@pytest.mark.parametrize("refusal", [ConnectionError("nobody"), ray.exceptions.AuthenticationError("no token")])
def test_a_cluster_that_cannot_be_reached_or_asks_for_a_token_is_explained(
    refusal: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise refusal

    monkeypatch.setattr(ray, "init", refuse)
    request = tmp_path / "request.json"
    request.write_text(json.dumps({**GOOD, "run": {"storage_path": str(tmp_path), "name": "run"}}))
    assert driver.main([str(request)]) == 1
    printed = capsys.readouterr()
    assert "ray start --head" in printed.err and "RAY_AUTH_MODE=token" in printed.err
    assert json.loads(printed.out)["status"] == "failed"
