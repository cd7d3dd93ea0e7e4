"""The house is in order: small modules, living links, numbers in the docs that are those of the code."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from commbench import collectives, profile, records
from commbench.layout import Layout
from commbench.spec import Spec
from commbench.sweep import recipes
from commbench.sweep.keys import KEYS, LISTED
from commbench.train import results
from tests.conftest import REPOSITORY

WITHOUT_BUSBW = {"tp_all_to_all", "reshard", "dispatch", "combine"}
UNTOLD = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
MARKDOWN = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), REPOSITORY / "tests/README.md"])
HISTORY = {"CHANGELOG.md", "decisions.md", "log.md"}  # which name what was there at the time
SOURCES = sorted(REPOSITORY.glob("commbench/**/*.py"))
OTHERS = sorted([*REPOSITORY.glob("moe_ref/**/*.py"), *REPOSITORY.glob("kernels/**/*.py")])


@pytest.mark.parametrize("path", SOURCES + OTHERS, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_modules_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400, "split it: aim under 300 lines"


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda p: p.name)
def test_no_dead_links(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", path.read_text()):
        if not target.startswith("http"):
            page = path.parent / target if target else path
            assert page.exists(), f"{path.name} links to {target}"
            assert not anchor or anchor in _anchors(page), f"{path.name} links to {target}#{anchor}"


def _anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub names them in links."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_index_of_the_docs_has_every_page() -> None:
    linked = re.findall(r"\]\((\w+/[^)]*)\)", (REPOSITORY / "docs/README.md").read_text())
    pages = [str(path.relative_to(REPOSITORY / "docs")) for path in REPOSITORY.glob("docs/*/**/*.md")]
    assert sorted(page for page in linked if page.endswith(".md")) == sorted(pages)


def test_what_the_docs_import_exists() -> None:
    for path in MARKDOWN:
        for module, names in re.findall(
            r"^ *from ((?:commbench|moe_ref)[\w.]*) import ([\w, ]+)", path.read_text(), re.M
        ):
            for name in names.replace(" ", "").split(","):
                assert name in _names(module), f"{path.name}: from {module} import {name}"


@pytest.mark.parametrize("path", [page for page in MARKDOWN if page.name not in HISTORY], ids=lambda p: p.name)
def test_files_named_in_the_docs_exist(path: Path) -> None:
    named = re.findall(r"`((?:commbench|moe_ref|kernels|tests|docs|sweeps)/[\w./-]+)[`:]", path.read_text())
    assert [name for name in named if "NAME" not in name and not (REPOSITORY / name).exists()] == []


def test_names_in_contributing_exist() -> None:
    """`FILE:NAME` and `FILE:CLASS.METHOD`, as the paths through the code give them."""
    named = re.findall(r"`([\w/]+\.py):([\w.]+)`", (REPOSITORY / "CONTRIBUTING.md").read_text())
    assert len(named) > 40
    missing = [f"{file}:{name}" for file, name in named if not _defines(REPOSITORY / file, name)]
    assert missing == [], "correct them in CONTRIBUTING.md, or take the row away"


def _defines(path: Path, name: str) -> bool:
    body = ast.parse(path.read_text()).body if path.exists() else []
    for part in name.split("."):
        node = next((node for node in body if part in _bound(node)), None)
        if node is None:
            return False
        body = getattr(node, "body", [])
    return True


def _bound(node: ast.stmt) -> list[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _names(module: str) -> set[str]:
    """What can be imported from a module or package, read from its text: nothing is imported here."""
    file = REPOSITORY / (module.replace(".", "/") + ".py")
    folder = file.with_suffix("")
    submodules = {child.stem for child in folder.iterdir()} if folder.is_dir() else set()
    tree = ast.parse((file if file.exists() else folder / "__init__.py").read_text())
    assigned = [
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    imported = [
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    return {*submodules, *assigned, *defined, *imported}


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda p: p.name)
def test_prose_is_wrapped_like_the_code(path: Path) -> None:
    """Tables, code and a link of its own length may be longer."""
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    long = [
        line
        for line in text.splitlines()
        if len(line) > 120 and not re.match(r" {4}|\||!?\[[^]]*\]\([^)]*\)\S?$", line)
    ]
    assert long == []


def test_pages_named_in_any_text_exist() -> None:
    tracked = subprocess.run(
        ["git", "grep", "-IhoE", r"docs/[A-Za-z0-9_/.-]+\.(md|json|png)"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert [name for name in sorted(set(tracked.stdout.split())) if not (REPOSITORY / name).exists()] == []


def test_every_key_of_a_sweep_is_in_the_docs() -> None:
    text = (REPOSITORY / "docs/reference/keys.md").read_text()
    assert {name for name in KEYS if f"`{name}`" not in text} == set()
    listed = set()
    for line in re.findall(r"^\| `.*", text.split("## Keys of a sweep")[1].split("Keys that belong")[0], re.MULTILINE):
        _, keys, defaults, axis, *_ = line.split("|")
        for name, default in zip(re.findall(r"`([\w.]+)`", keys), defaults.split(","), strict=False):
            if name in LISTED:
                key = KEYS[name]
                shown = yaml.safe_dump(key.default).split()[0].replace("null", "none")
                assert (default.strip(" `"), axis.strip()) == (shown, "yes" if key.axis else "no"), name
                listed.add(name)
    assert listed == LISTED.keys()


def test_versions_of_formats_in_the_docs_are_those_of_the_code() -> None:
    text = (REPOSITORY / "docs/reference/formats.md").read_text()
    versions = {
        "run folder of a sweep": f"| {records.FORMAT_VERSION} | {min(records.READABLE)} to {max(records.READABLE)} |",
        "run folder of a training": f"| `{results.FORMAT}` | {', '.join(f'`{one}`' for one in results.READABLE)} |",
        "checkpoint": f"| `commbench-checkpoint`, {_constant('moe_ref/training/checkpoint.py')} |",
        "profile": f"| `{profile.FORMAT}`, {profile.FORMAT_VERSION} |",
        "cost model": f"| {_constant('commbench/cost_model/model.py')} |",
        "machine": f"| {_constant('commbench/machine/describe.py')} |",
        "answer": f"| {_constant('commbench/output/answer/claims.py')} |",
    }
    for name, cells in versions.items():
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {name}"))
        assert cells in line, line


def _constant(path: str) -> int:
    """FORMAT_VERSION of a module, read from its text, as importing it may need torch."""
    match = re.search(r"^FORMAT_VERSION = (\d+)", (REPOSITORY / path).read_text(), re.MULTILINE)
    assert match is not None, path
    return int(match[1])


def test_variables_of_the_environment_are_in_the_docs() -> None:
    text = (REPOSITORY / "docs/reference/stability.md").read_text()
    named = {name for path in SOURCES for name in re.findall(r"\"(COMMBENCH_[A-Z]+)\"", path.read_text())}
    assert {name for name in named - {"COMMBENCH_NODES"} if f"`{name}`" not in text} == set()


def test_factors_in_the_docs_are_those_of_the_code() -> None:
    text = (REPOSITORY / "docs/reference/metrics.md").read_text().split("## Bus bandwidth")[1]
    for name, collective in collectives.TABLE.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        if name in WITHOUT_BUSBW:
            assert "null" in row
            continue
        shown = [float(cell) for cell in row.split("|")[3:6]]
        specs = [even(name, n) for n in (2, 4, 8)]
        assert shown == [collective.busbw_factor(spec) for spec in specs]


def even(name: str, ranks: int) -> Spec:
    """All ranks on one node, with the defaults of the collective."""
    collective = collectives.get(name)
    defaults = {key: item.default for key, item in collective.arguments.items() if item.default is not None}
    size, arguments = collective.settle(ranks * 1600, Layout(1, ranks), defaults)
    return Spec(collective=name, dtype="uint8", size_bytes=size, layout=Layout(1, ranks), arguments=arguments)


@pytest.mark.parametrize("name", sorted(collectives.TABLE.keys() - WITHOUT_BUSBW))
@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_the_factor_is_what_a_rank_must_move(name: str, ranks: int) -> None:
    """Derivation, not repetition: busbw is the rate of the busiest link at the bound, so it is the link's own rate."""
    collective, spec = collectives.get(name), even(name, ranks)
    (need,) = (need for need in collective.needs(spec) if need.of == "rank")
    assert need.nbytes / spec.size_bytes == pytest.approx(collective.busbw_factor(spec))


def test_only_the_transports_and_the_events_read_a_clock_in_ranks() -> None:
    """One timing loop: nothing else takes times, so nothing else can take them differently.

    The recorder measures calls that are not ours: a program makes them, whenever it likes.
    """
    users = {
        str(path.relative_to(REPOSITORY / "commbench"))
        for path in SOURCES
        if re.search(r"perf_counter|cuda\.Event|time\.time\(", path.read_text())
    }
    assert users == {"transports/host_clock.py", "transports/cuda/timer.py", "backend/recorder.py"}


def test_layers_do_not_reach_across() -> None:
    """Nothing in collectives or algorithms knows files, Hydra or plots; nothing in plots knows torch."""
    forbidden = {
        "collectives": {"commbench.run_folder", "commbench.sweep.recipes", "commbench.plots", "hydra", "torch"},
        "algorithms": {"commbench.run_folder", "commbench.sweep.recipes", "commbench.plots", "hydra", "torch"},
        "plots": {"torch", "commbench.transports", "commbench.run_folder", "hydra"},
    }
    for folder, names in forbidden.items():
        for path in (REPOSITORY / "commbench" / folder).glob("*.py"):
            imported = set()
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    imported.add(node.module)
            assert not {name for name in imported for bad in names if name == bad or name.startswith(bad + ".")}, path


def test_recipes_are_found_in_the_checkout() -> None:
    assert recipes.root() == REPOSITORY / "sweeps"


def test_readme_commands_are_in_the_makefile() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for command in re.findall(r"^    make (\w+)", (REPOSITORY / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)
    assert {"make check &", "make test"} <= {*(REPOSITORY / ".ci/run").read_text().splitlines()}


def test_each_test_is_in_one_room(tmp_path: Path) -> None:
    """`make test` runs rooms beside each other. A pattern that names nothing would let pytest run everything."""
    if shutil.which("make") is None:
        pytest.skip("make is not here")

    def rooms(folder: Path) -> subprocess.CompletedProcess[str]:
        words = ["make", "--no-print-directory", "-f", str(REPOSITORY / "Makefile"), "rooms"]
        # `make test` tells its children what it was called with.
        return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, env=UNTOLD)

    told = dict(line.split(": ") for line in rooms(REPOSITORY).stdout.splitlines())
    tests = {
        str(path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        if path.relative_to(REPOSITORY / "tests").parts[0] != "programs"
    }
    named = [REPOSITORY / name for names in told.values() for name in names.split()]
    files = [file for path in named for file in ([path] if path.is_file() else path.rglob("test_*.py"))]
    found = [str(file.relative_to(REPOSITORY)) for file in files]
    assert sorted(found) == sorted(tests)
    empty = rooms(tmp_path)
    assert empty.returncode != 0 and "no tests are called tests/unit" in empty.stderr


def test_no_results_but_reference_ones_are_tracked() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "results"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert all(line.startswith("results/reference/") for line in tracked.stdout.splitlines())
