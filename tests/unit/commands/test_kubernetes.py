"""Manifests of examples/kubernetes: the kinds' fields, and commands that are understood.

Which fields there are is from the kinds' own definitions of 2026 (Trainer v2.2, JobSet, MPI Operator) and of Training
Operator 1.9, against whose whole schemas the files were checked once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY, here

FOLDER = REPOSITORY / "examples/kubernetes"
FIELDS: dict[str, tuple[str, str, set[str]]] = {
    "trainjob": ("trainer.kubeflow.org/v1alpha1", "TrainJob", {"runtimeRef", "trainer", "runtimePatches"}),
    "jobset": ("jobset.x-k8s.io/v1alpha2", "JobSet", {"network", "failurePolicy", "replicatedJobs"}),
    "pytorchjob": ("kubeflow.org/v1", "PyTorchJob", {"nprocPerNode", "runPolicy", "pytorchReplicaSpecs"}),
    "mpijob": ("kubeflow.org/v2beta1", "MPIJob",
               {"slotsPerWorker", "mpiImplementation", "runPolicy", "mpiReplicaSpecs"}),
}  # fmt: skip


def read(name: str) -> dict[str, Any]:
    found = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert isinstance(found, dict)
    return found


def blocks(node: Any) -> Iterator[dict[str, Any]]:
    """All mappings of a manifest."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from blocks(value)
    elif isinstance(node, list):
        for value in node:
            yield from blocks(value)


def commands(name: str) -> list[list[str]]:
    """What follows `commbench` in the commands of containers, as words."""
    typed = [" ".join([*block["command"], *block.get("args", ())]).split() for block in blocks(read(name))
             if "command" in block]  # fmt: skip
    return [words[words.index("commbench") + 1 :] for words in typed if "commbench" in words]


def test_there_are_these() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == FIELDS.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_a_manifest_is_of_its_kind_and_its_command_is_understood(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read(name)
    version, kind, fields = FIELDS[name]
    assert (found["apiVersion"], found["kind"]) == (version, kind) and found["spec"].keys() == fields
    monkeypatch.setattr("commbench.transports.missing", lambda name, **more: "")  # GPUs, that a dry run does not use
    for words in commands(name):
        out = words.index("--out")
        assert words[out + 1] == "/results", "what all nodes mount"
        done = here(*words[:out], "--out", str(tmp_path / "results"), "--dry-run", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    claims = [block for block in blocks(found) if "claimName" in block]
    mounts = [block for block in blocks(found) if block.get("mountPath") == "/results"]
    assert commands(name) and claims and len(mounts) == len(claims)
