"""Pages of `commbench report` in Chromium: they draw all charts, say nothing on the console, and open quickly.

Debian: apt install chromium. PAGES=DIR keeps pages and pictures: light, dark, narrow and printed, to be looked at.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from commbench.report import html
from commbench.run_folder import RunFolder
from commbench.serialise import as_dict, seal, to_json
from tests.conftest import REPOSITORY, commbench
from tests.support.fake_runs import folder as made_folder
from tests.support.fake_runs import measured, planned
from tests.unit.report.test_report import EVIL, Elements

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
REFERENCE = REPOSITORY / "results" / "reference"
RUNS = ("2d_overhead-16cpu", "slow_link-4x2-2cpu", "gpu_isolated-2xH200", "tuned-2xH200", "train-table1-2xH200/tuned",
        "train_ab-2x4-2cpu/tuned_over_default")  # fmt: skip
OPENS_S = 3.0
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr")
_PATIENCE_S = 120

pytestmark = [
    pytest.mark.skipif(not BROWSER, reason="no chromium: apt install chromium"),
    pytest.mark.skipif(not html.vega(), reason="this checkout was never installed: pip install -e ."),
]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Where pages and pictures go."""
    target = Path(os.environ.get("PAGES") or tmp_path)
    target.mkdir(parents=True, exist_ok=True)
    return target


def browse(page: Path, *flags: str) -> tuple[str, list[str]]:
    """What Chromium prints, and what a page says on the console."""
    done = subprocess.run(
        [BROWSER, *_FLAGS, *flags, page.as_uri()], capture_output=True, text=True, timeout=_PATIENCE_S, check=True
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def opened(page: Path) -> str:
    """The page as the browser has it when all charts are drawn."""
    dom, said = browse(page, "--virtual-time-budget=20000", "--dump-dom")
    assert said == []
    return dom


def pictures(page: Path) -> None:
    looks: dict[str, Sequence[str]] = {
        "light": ("--window-size=1200,2600",),
        "dark": ("--window-size=1200,2600", "--blink-settings=preferredColorScheme=0"),
        "narrow": ("--window-size=500,3000",),
    }
    for look, flags in looks.items():
        browse(page, "--virtual-time-budget=20000", f"--screenshot={page.with_suffix('')}-{look}.png", *flags)
    browse(page, "--virtual-time-budget=20000", "--no-pdf-header-footer", f"--print-to-pdf={page.with_suffix('.pdf')}")


def write(kept: Path, name: str, *runs: Path) -> Path:
    page = kept / f"{name.replace('/', '-')}.html"
    done = commbench("report", *map(str, runs), "--out", str(page), cwd=kept)
    assert done.returncode == 0, done.stderr
    assert page.stat().st_size < 3_000_000
    return page


@pytest.mark.parametrize("name", RUNS)
def test_every_chart_is_drawn_and_the_console_is_silent(kept: Path, name: str) -> None:
    page = write(kept, name, REFERENCE / name)
    dom = opened(page)
    charts = page.read_text().count('class="spec"')
    assert charts and 'data-drawn="1"' in dom
    assert len(re.findall(r"<svg[^>]*class=\"marks\"", dom)) == charts
    if os.environ.get("PAGES"):
        pictures(page)


def test_a_plan_is_drawn(kept: Path) -> None:
    words = ("plan", "qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=400", "--format", "json")
    (kept / "plan.json").write_text(commbench(*words, cwd=kept).stdout)
    assert opened(write(kept, "plan", kept / "plan.json")).count('class="marks"') == 2


def test_a_run_of_markup_runs_nothing(kept: Path, tmp_path: Path) -> None:
    run = tmp_path / "evil"
    shutil.copytree(REFERENCE / "2d_overhead-16cpu", run)
    folder = RunFolder(run)
    about = folder.read_json("run.json")
    about |= {"machine_text": EVIL, "command": [EVIL], "recipe": EVIL, "started": EVIL}
    about["machine"] |= {"host": EVIL, "kernel": EVIL, "packages": {EVIL: EVIL}}
    folder.write_json("run.json", about)
    dom = opened(write(kept, "evil", run))
    tags = [tag for tag, _ in Elements(dom).found]
    assert "img" not in tags and "window.pwned=1" in dom and 'data-drawn="1"' in dom  # as text


def test_twenty_thousand_rows_open_quickly(kept: Path, tmp_path: Path) -> None:
    few = planned("nodes=4", "ranks_per_node=2", "launches=1")
    made, rows = made_folder(tmp_path, few, measured(few, lambda case: 10 + case.size_bytes / 1e3), 1)
    about = json.loads((REFERENCE / "2d_overhead-2cpu" / "run.json").read_text()) | {"format_version": 6}
    made.write_json("run.json", about)
    plan, finished = [], []
    for number in range(-(-20_000 // len(few))):
        for case, row in zip(few, rows, strict=True):
            one = replace(case, seed=number)
            plan.append({"case": as_dict(one), "skip": ""})
            finished.append(seal(to_json(replace(row, case_id=one.case_id))))
    made.write_plan(plan)
    made.cases_path.write_text("\n".join(finished) + "\n")
    page = write(kept, "many", made.path)
    assert f'"rows":{len(finished)}' in page.read_text()
    began = time.monotonic()
    dom, said = browse(page, "--dump-dom")  # in its own time, until the page is loaded
    took = time.monotonic() - began
    assert said == [] and 'data-ready="1"' in dom
    print(
        f"{len(finished)} rows, {page.stat().st_size / 1e6:.2f} MB: open in {took:.2f} s, the browser's start included"
    )
    assert took < OPENS_S
