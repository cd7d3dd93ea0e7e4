"""Ways of a dispatch: bytes predicted and counted, and whether the cost model names the fastest where it has not been.

On emulated clusters, in pieces that go on where they stopped; runs are kept in the folder OUT.

make bench ARGS="dispatch bytes OUT"           20 cells: rows by probability, bytes declared, and by the links' counters
make bench ARGS="dispatch measure OUT 2x2 .."  times on these layouts, of a minute or two each
make bench ARGS="dispatch judge OUT"           costs fitted to the layouts of FITTED; the others are only predicted.
                                               Where no others were measured, each is left out of the fit in turn
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import comb
from pathlib import Path

from commbench import cost_model
from commbench.cost_model import Observation
from commbench.records import Row, Status
from commbench.run_folder import RunFolder
from commbench.units import format_size
from tests.bench.model import Cell
from tests.bench.shares import wilson
from tests.conftest import commbench

FITTED = ("2x2", "2x3", "3x2")
# Links that take most of the time; inside nodes, too, so that sending a row twice there is not free.
LINKS = ("link=100mbit", "intra_link=200mbit")
COMMON = ("quick", "transport=gloo", "fabric=emulated", "collective=dispatch,combine", "dtype=bf16", "warmup=1",
          "--no-plots", "--quiet")  # fmt: skip
TIMED = ("algorithm=per_choice,per_rank,per_node", "model_dim=256", "tokens=8,128", "launches=6", "cap=0.15",
         "samples.min=3")  # fmt: skip
SHAPES = ((2, 4), (8, 4))  # top-k, and experts of each rank
# Layout, top-k, experts, payload: each by two algorithms, and both ways.
COUNTED = (("2x2", 4, 16, "none"), ("2x4", 8, 32, "none"), ("2x4", 8, 32, "fp8"), ("4x2", 8, 64, "none"),
           ("3x2", 2, 12, "int8"))  # fmt: skip


def main(words: list[str]) -> int:
    if len(words) < 2 or words[0] not in ("bytes", "measure", "judge"):
        print(__doc__)
        return 2
    out = Path(words[1])
    if words[0] == "bytes":
        return counted(out)
    if words[0] == "measure":
        for layout in words[2:]:
            measured(out, layout)
        return 0
    judge(out)
    return 0


def swept(parent: Path, words: Sequence[str]) -> RunFolder:
    """Return the run of a sweep, made unless it is there; one that was broken off goes on."""
    latest = parent / "latest"
    if not (parent / "done").exists():
        parent.mkdir(parents=True, exist_ok=True)
        asked = ("--resume", str(latest.resolve())) if latest.exists() else (*words, "--out", str(parent))
        found = commbench("sweep", *asked, cwd=parent, timeout=1800)
        if found.returncode:
            raise SystemExit(found.stderr)
        (parent / "done").touch()
    return RunFolder.open(latest)


def measured(out: Path, layout: str) -> list[RunFolder]:
    nodes, ranks = map(int, layout.split("x"))
    return [
        swept(
            out / f"{layout}-top{top_k}",
            (*COMMON, *LINKS, *TIMED, f"layout={layout}", f"top_k={top_k}", f"experts={each * nodes * ranks}"),
        )
        for top_k, each in SHAPES
    ]


# Bytes.


def counted(out: Path) -> int:
    print(f"{'cell':<48} {'rows a token':>14} {'declared':>12} {'counted':>12} {'by it':>7}")
    cells, rule, links = 0, 0.0, 0.0
    for layout, top_k, experts, payload in COUNTED:
        words = (f"layout={layout}", f"top_k={top_k}", f"experts={experts}", f"payload={payload}", "link=200mbit",
                 "algorithm=per_choice,per_node", "counts=cached", "tokens=512", "model_dim=512", "launches=1",
                 "iters=2")  # fmt: skip
        folder = swept(out / f"bytes-{layout}-{top_k}-{experts}-{payload}", (*COMMON, *words))
        for row in folder.rows().values():
            if row.status is not Status.OK or row.wire_bytes is None or row.inter_bytes is None:
                raise SystemExit(f"{row.case_id}: {row.status}: {row.reason}")
            nodes = int(layout.partition("x")[0])
            by_rule, said, wire = _rows(row, nodes, top_k, experts), row.inter_bytes, row.wire_bytes
            tokens = 512 * row.ranks
            travelling = row.payload_bytes or row.size_bytes
            rows = said / (travelling / 512) / tokens
            rule, links = max(rule, abs(rows / by_rule - 1)), max(links, abs(wire / said - 1))
            name = f"{layout} {row.collective} {row.algorithm} top-{top_k} of {experts} {payload}"
            print(f"{name:<48} {rows:5.3f} of {by_rule:5.3f} {said:>12} {wire:>12.0f} {wire / said:7.4f}")
            cells += 1
    print(f"{cells} cells; off at the most: rows by probability {rule:.2%}, links {links:.2%}")
    return 0


def _rows(row: Row, nodes: int, top_k: int, experts: int) -> float:
    """Rows a token that leave its node, of uniform routing: n g (1 - C(E - E/g, K) / C(E, K)) on g nodes, or K."""
    if row.algorithm == "per_choice":
        return top_k * (nodes - 1) / nodes
    return (nodes - 1) * (1 - comb(experts - experts // nodes, top_k) / comb(experts, top_k))


# Times.


def _cells(layout: str, found: Sequence[Observation], fitted: cost_model.Model) -> Iterator[Cell]:
    """Yield what was measured and predicted of a layout, by collective, size and top-k."""
    groups: dict[tuple[object, ...], list[Observation]] = {}
    for one in found:
        case = one.case
        groups.setdefault((case.collective, case.size_bytes, case.arguments["top_k"]), []).append(one)
    for (collective, size, top_k), members in groups.items():
        predicted = {o.case.label: told for o in members if (told := fitted.predict(o.case)) is not None}
        where = f"{layout} {collective} top-{top_k} {format_size(int(str(size)))}"
        yield Cell(where=where, measured={o.case.label: o for o in members}, predicted=predicted)


def judge(out: Path) -> None:
    by_layout: dict[str, list[Observation]] = {}
    for folder in sorted(out.glob("*-top*/done")):
        by_layout.setdefault(folder.parent.name.partition("-")[0], []).extend(
            cost_model.observe(RunFolder.open(folder.parent / "latest"))
        )
    others = [layout for layout in by_layout if layout not in FITTED]
    left_out = [others] if others else [[layout] for layout in by_layout]
    cells = []
    for unseen in left_out:
        fitted = cost_model.fit([one for layout, found in by_layout.items() if layout not in unseen for one in found])
        if others:
            print(*fitted.describe(), sep="\n", end="\n\n")
        cells += [cell for layout in unseen for cell in _cells(layout, by_layout[layout], fitted)]
    for cell in cells:
        times = ", ".join(f"{name} {cell.time_us(name) / 1e3:.1f} ({cell.predicted[name].time_us / 1e3:.1f})"
                          for name in cell.measured)  # fmt: skip
        verdict = "tie" if not cell.separated else "right" if cell.named == cell.winner else "wrong"
        print(f"{cell.where:<32} {times}: {verdict}")
    clear = [cell for cell in cells if cell.separated]
    if not clear:
        print(f"{len(cells)} cells of layouts that were not fitted, all of them ties")
        return
    constant, most = Counter(cell.winner for cell in clear).most_common(1)[0]
    hits = sum(cell.named == cell.winner for cell in clear)
    print(f"{len(cells)} cells of layouts that were not fitted, {len(cells) - len(clear)} of them ties")
    for name, right in (("the model", hits), (f"always {constant}", most)):
        print(f"{name}: {right} of {len(clear)} right, {wilson(right, len(clear))}")
    print(f"{100 * (hits - most) / len(clear):+.0f} points")
