"""The built wheel works from any folder, recipes included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, only_run, rows_of


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel and nothing else of ours."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(REPOSITORY)],
        check=True, capture_output=True, timeout=280,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_recipes_licence_and_entry_point_are_in_it(site: Path) -> None:
    assert (site / "commbench/sweeps/recipe/quick.yaml").is_file()
    assert (site / "commbench/py.typed").is_file()
    (metadata,) = site.glob("commbench-*.dist-info")
    entries = (metadata / "entry_points.txt").read_text()
    assert "commbench = commbench.cli:main" in entries
    assert "[torch.backends]\ncommbench = commbench_autoload:activate" in entries
    assert (metadata / "licenses/LICENSE").is_file()
    modules = {"commbench", "commbench_autoload.py", "commbench_kernels", "moe_ref"}
    assert {path.name for path in site.iterdir()} == {*modules, metadata.name}
    assert {"one_sided.cu", "system.cuh", "py.typed"} <= {path.name for path in (site / "commbench_kernels").iterdir()}


def test_a_sweep_from_the_wheel_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    code = "import sys; from commbench.cli import main; sys.argv[0] = 'commbench'; main()"
    words = ("sweep", "quick", "nodes=2", "-e", "8K", "launches=2", "iters=5", "--format", "json")
    result = subprocess.run(
        # -P: the current folder is not on the path; PYTHONPATH puts the wheel before an editable install
        [sys.executable, "-P", "-c", code, *words],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = rows_of(result)
    assert len(rows) == 8 and {row["status"] for row in rows} == {"ok"}
    run = only_run(tmp_path / "results")
    assert list((run / "plots").glob("*.png"))
    assert json.loads((run / "run.json").read_text())["machine"]["commit"] is None, "it ran from the checkout"
