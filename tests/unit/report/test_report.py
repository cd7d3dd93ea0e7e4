"""Pages of runs: what they say, that nothing of a run is markup or code, and how large they are."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from commbench.analysis.bounds import Told
from commbench.plots.style import algorithm_colour
from commbench.report import html, markdown, read
from commbench.report.page import (
    CommandLine,
    FactList,
    LegendEntry,
    PageChart,
    PageColumn,
    PageReport,
    PageSection,
    PageTable,
    Paragraph,
)
from commbench.report.rows_table import table
from commbench.run_folder import RunFolder
from tests.conftest import REPOSITORY, here
from tests.support import drawn_checks

REFERENCE = REPOSITORY / "results" / "reference"
SWEEP = REFERENCE / "2d_overhead-16cpu"
EVIL = "</script><script>window.pwned=1</script><img src=x onerror=pwned()>\"'`&{{}}|<!--"
MOST_BYTES = 3_000_000
VEGA_BYTES = 920_000  # of the library that a built package has


class Elements(HTMLParser):
    """What a browser would see: elements with their attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._script = False

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts.append(data)


def page(*paths: Path) -> str:
    return html.write(reports(*paths), "title")


def reports(*paths: Path) -> list[PageReport]:
    return read.reports(paths, Told(), lambda text: None)


@pytest.fixture(scope="module", autouse=True)
def without_vega() -> Any:
    """Whether the checkout was installed or not, these pages are the same: the library is tested in a browser."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "vega", lambda: "/* vega */")
        yield


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    from commbench.check import kept, run
    from commbench.check.judge import judge

    folder = drawn_checks.draw(tmp_path_factory.mktemp("check"), 1, slow_link=(2, "out", 3.0))
    report = judge(folder)
    kept.write(folder, kept.Asked(budget_s=30), 12.0, run.as_dict(report, folder, 12.0))
    return folder


KINDS = {
    "2d_overhead-16cpu": ("sweep", "2d_inter_first and 2d_intra_first are 3.33x to 4.59x as fast as direct from 4 KiB"),
    "slow_link-4x2-2cpu": ("sweep", "node 2's link takes 3.01x [3.01-3.08] as long as its like"),
    "tuned-2xH200": ("tuning", "The profile is 1.15x to 2.72x as fast as the default, in 12 of 12 cases"),
    "train-table1-2xH200/tuned": ("training", "tokens a second"),
    "train_ab-2x4-2cpu/tuned_over_default": ("A/B", "1.15x [1.14-1.16]"),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_answer_is_the_headline(name: str) -> None:
    kind, said = KINDS[name]
    (found,) = reports(REFERENCE / name)
    assert found.kind == kind and said in found.answer[0]
    titles = [section.title for section in found.sections]
    assert titles[-1].startswith(("Do it again", "Use it"))
    for section in found.sections:
        for block in section.blocks:
            assert not isinstance(block, PageChart) or (block.title and block.panels and block.legend is not None)
    assert found.answer[0][1:] in markdown.write([found], "t").replace("\\", "")


def test_a_check_shows_its_verdict_who_is_named_and_each_pair(check: RunFolder) -> None:
    (found,) = reports(check.path)
    assert (found.verdict, found.mood) == ("Not healthy", "bad")
    assert found.answer[0].startswith("node 2's link out is ")
    assert {"Who is named, and why", "What was looked at", "Pairs of ranks"} <= {one.title for one in found.sections}


def test_a_plan_is_a_page_too(tmp_path: Path) -> None:
    words = ("plan", "qwen3-30b-a3b", "gpu=h100", "nodes=1", "--format", "json")
    (tmp_path / "plan.json").write_text(here(*words, cwd=tmp_path).stdout)
    (found,) = reports(tmp_path / "plan.json")
    assert found.kind == "plan" and " is best: " in found.answer[0]
    assert any(isinstance(block, PageTable) and block.rows > 10 for one in found.sections for block in one.blocks)


def test_colours_are_those_of_the_pictures() -> None:
    (found,) = reports(SWEEP)
    charts = [block for section in found.sections for block in section.blocks if isinstance(block, PageChart)]
    legend = {one.label: one.colour for one in charts[0].legend}
    assert {name: algorithm_colour(name) for name in ("direct", "2d_intra_first")}.items() <= legend.items()


def test_several_runs_share_their_pictures() -> None:
    (both,) = reports(SWEEP, REFERENCE / "2d_overhead-2cpu")
    titles = [section.title for section in both.sections]
    assert titles.count("Bandwidth and time") == 1 and titles.count("All rows") == 1
    text = page(SWEEP, REFERENCE / "tuned-2xH200")
    assert text.count("<article") == 2 and "In this page" in text


def everywhere(text: str) -> PageReport:
    """A report that says something in every place that there is."""
    spec: dict[str, Any] = {"data": {"values": [{"series": text, "text": text}]}}
    blocks = [
        Paragraph(text=text), FactList(items=[(text, text)]), CommandLine(text=text, label=text),
        PageTable(columns=[PageColumn(name=text, values=[text], help=text, keys={text: 1.0})], name=text),
        PageChart(title=text, panels=[spec], legend=[LegendEntry(label=text, colour=text)], subtitle=text, says=text),
    ]  # fmt: skip
    return PageReport(
        kind=text, name=text, answer=[text, text], next=text, command=text, verdict=text, about=[text],
        sections=[PageSection(title=text, blocks=blocks), PageSection(title=text, blocks=blocks, folded=True)],
    )  # fmt: skip


def test_nothing_of_a_report_is_markup_or_code() -> None:
    plain = Elements(html.write([everywhere("x"), everywhere("x")], "x"))
    evil = Elements(html.write([everywhere(EVIL), everywhere(EVIL)], EVIL))
    assert [tag for tag, _ in evil.found] == [tag for tag, _ in plain.found]
    assert [sorted(of) for _, of in evil.found] == [sorted(of) for _, of in plain.found]
    assert not any(name.startswith("on") for _, of in evil.found for name in of)
    data = [json.loads(text) for text in evil.scripts if text.startswith("{")]
    assert data[1]["data"]["values"] == [{"series": EVIL, "text": EVIL}]  # and it is all there


def test_markdown_has_no_markup_of_a_run() -> None:
    text = markdown.write([everywhere(EVIL)], "t")
    outside = re.sub(r"^(`{3,})\n.*?\n\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"(?<!\\)[<>]", outside)


def test_a_run_with_markup_in_its_files_is_harmless(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(SWEEP, run)
    folder = RunFolder(run)
    about = folder.read_json("run.json")
    about |= {"machine_text": EVIL, "command": ["commbench", EVIL], "recipe": EVIL, "started": EVIL}
    about["machine"] |= {"host": EVIL, "kernel": EVIL, "packages": {EVIL: EVIL}}
    folder.write_json("run.json", about)
    seen = Elements(page(run))
    assert not any("onerror" in of or tag == "img" for tag, of in seen.found)
    own = [text for text in seen.scripts if not text.startswith("{")]
    assert len(own) == 2 and not any("pwned" in text for text in own)


def test_twenty_thousand_rows_fit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    count, times = 20_000, rng.lognormal(5, 2, 20_000)
    names = [f"algorithm-{number % 40} chunks={number % 7}" for number in range(count)]
    frame = pd.DataFrame({
        "run": "r", "label": names, "what": "all_to_all", "transport": "gloo", "dtype": "fp32", "mode": "isolated",
        "buffers": "plain", "env": "", "binding": "none", "nodes": 4, "ranks": 8,
        "size_bytes": 2 ** rng.integers(3, 30, count),
        "time_us": times, "time_us_low": times * 0.97, "time_us_high": times * 1.04, "algbw_gbps": 1 / times,
        "busbw_gbps": 0.75 / times, "bound_fraction": rng.random(count), "speedup": rng.random(count) + 0.5,
        "speedup_low": rng.random(count), "speedup_high": rng.random(count) + 1, "launches": 6, "samples": 60,
        "status": "ok",
    })  # fmt: skip
    made = table(frame)
    sections = [PageSection(title="All rows", blocks=[made])]
    text = html.write([PageReport(kind="sweep", name="r", answer=["a"], sections=sections)], "t")
    assert made.rows == count and text.count("<tr>") < 200
    assert len(text.encode()) + VEGA_BYTES < MOST_BYTES


def test_sizes_sort_by_bytes_and_nothing_is_last() -> None:
    column = table(pd.read_parquet(SWEEP / "results.parquet")).columns[1]
    assert column.name == "size" and column.keys is not None
    assert column.keys["4 KiB"] == 4096 and column.keys["1 MiB"] == 1 << 20


def test_the_command_writes_and_prints(tmp_path: Path) -> None:
    done = here("report", str(SWEEP), "--out", "page.html", cwd=tmp_path)
    text = (tmp_path / "page.html").read_text()
    assert done.returncode == 0 and done.stdout == "" and text.startswith("<!doctype html>")
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text)
    printed = here("report", str(SWEEP), cwd=tmp_path)
    assert printed.returncode == 0 and printed.stdout.startswith("# 2d_inter_first and ")


def test_an_anonymous_page_names_nobody(check: RunFolder, tmp_path: Path) -> None:
    for path in check.path.glob("logs/*/host-0.json"):
        path.write_text(path.read_text().replace('"host": "h"', '"host": "secret-node7"'))
    about = check.read_json("run.json") | {"command": ["commbench", "check", "--out", "/home/me/private"]}
    about["machine"] = {"host": "secret-node7", "affinity": [0]}
    check.write_json("run.json", about)
    named, hidden = tmp_path / "named.md", tmp_path / "hidden.md"
    assert here("report", str(check.path), "--out", str(named), cwd=tmp_path).returncode == 0
    assert here("report", str(check.path), "--anonymous", "--out", str(hidden), cwd=tmp_path).returncode == 0
    assert "secret" in named.read_text() and "private" in named.read_text()
    assert "secret" not in hidden.read_text() and "private" not in hidden.read_text()
    assert "Not healthy: node 2's link out" in hidden.read_text()


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (["nowhere"], "'nowhere' is not there", "run folders"),
        ([str(SWEEP), "--format", "html"], "goes into a file", "--out page.html"),
        ([str(SWEEP), "--out", "no/page.html"], "cannot write 'no/page.html'", "--out FILE"),
        ([], "RUN", "commbench report results/latest --out page.html"),
    ],
)
def test_what_cannot_be_meant_is_one_error_and_one_hint(tmp_path: Path, words: list[str], said: str, hint: str) -> None:
    done = here("report", *words, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    first, second, *more = done.stderr.strip().splitlines()
    assert not more and first.startswith("error: ") and said in first and hint in second
