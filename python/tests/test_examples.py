"""The examples and the document: well formed, and consistent with what the code accepts."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tandem_ray.request import parse_request

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted([*EXAMPLES.glob("*.sh"), *EXAMPLES.glob("*.sbatch")])
MANIFESTS = sorted(EXAMPLES.glob("*.yaml"))


def test_every_example_is_looked_at_and_is_in_the_document() -> None:
    files = sorted(path for path in EXAMPLES.iterdir() if path.is_file())
    assert files == sorted([*SCRIPTS, *MANIFESTS, EXAMPLES / "ray_train.py"])
    document = (ROOT / "docs" / "ray.md").read_text()
    for path in files:
        assert f"(../examples/{path.name})" in document


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_well_formed(script: Path) -> None:
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert script.stat().st_mode & 0o111, "a script can be executed"
    assert script.read_text().startswith("#!/usr/bin/env bash\n# ")


@pytest.mark.parametrize("path", [*SCRIPTS, *MANIFESTS], ids=lambda path: path.name)
def test_the_mesh_of_every_example_adds_up(path: Path) -> None:
    words = shlex.split(re.sub(r"\\\n", " ", _expanded(path)), comments=True)
    values = {word: value for word, value in itertools.pairwise(words) if word.startswith("--")}
    mesh = [int(values[f"--{name}"]) for name in ("tp_size", "dp_size", "num_workers")]
    assert mesh[0] * mesh[1] == mesh[2], path.name


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_manifests_say_what_they_are(manifest: Path) -> None:
    value = yaml.safe_load(manifest.read_text())
    assert {"apiVersion", "kind", "metadata", "spec"} == set(value)
    # A container and its volumes belong together.
    for pod in _pods(value):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_the_rayjobs_nodes_have_a_gpu_for_every_worker() -> None:
    spec = yaml.safe_load((EXAMPLES / "kuberay-rayjob.yaml").read_text())["spec"]
    gpus = 0
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        [container] = group["template"]["spec"]["containers"]
        gpus += group["replicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert f"--num_workers {gpus} " in spec["entrypoint"]


def test_the_pytorchjobs_replicas_are_the_workers() -> None:
    replicas = yaml.safe_load((EXAMPLES / "pytorchjob.yaml").read_text())["spec"]["pytorchReplicaSpecs"]
    assert (replicas["Master"]["replicas"], replicas["Worker"]["replicas"]) == (1, 3)


def test_the_documents_request_is_accepted_and_its_links_lead_somewhere() -> None:
    document = (ROOT / "docs" / "ray.md").read_text()
    [request] = re.findall(r"^    \{\n(?:     .*\n)*    \}$", document, flags=re.MULTILINE)
    assert parse_request(request).run.max_failures == 3
    links = re.findall(r"\]\((?!http|#)([^)]*)\)", document)
    assert len(links) > 5
    for link in links:
        assert (ROOT / "docs" / link).exists(), link


def _expanded(path: Path) -> str:
    """The command of an example, with the defaults of its variables."""
    text = path.read_text().replace("=", " ") if path.suffix == ".yaml" else path.read_text()
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    return re.sub(r"\$\(\((\d+) ([*/]) (\d+)\)\)", _arithmetic, text)


def _arithmetic(match: re.Match[str]) -> str:
    left, operator, right = int(match[1]), match[2], int(match[3])
    return str(left * right if operator == "*" else left // right)


def _pods(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return [pod for item in value for pod in _pods(item)]
    if isinstance(value, dict):
        here = [value] if "containers" in value else []
        return here + [pod for item in value.values() for pod in _pods(item)]
    return []
