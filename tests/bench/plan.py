"""The planner's regret on an emulated cluster: what settings of `emulated-2x4` take, beside what was planned of them.

    python -m tests.bench plan [layout=2x4] [link=100mbit] [intra=400mbit] [minutes=4] [launches=3] [count=12] [seed=7]

measures what is left, as long as `minutes` allow, and prints the comparison of what there is. What is done is kept in
results/plan-LAYOUT-LINK, and a second start goes on from there. Everything that is fitted is fitted to what is not
judged: products on one CPU, `sweep calls` of the cluster (and the cost model of its all-to-alls), two trainings of one
rank, which say what the host takes for a kernel and for a step, and the recipe's default, which is not judged: what it
takes more than planned, all others are expected to take more.
"""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from commbench.layout import Layout
from commbench.strategy import planned, validation
from commbench.strategy.cluster import LinkCost
from commbench.strategy.planned import PlanRequest
from commbench.strategy.ranking import PlanProblem
from commbench.strategy.setting import SCHEDULES, Setting, Settings
from commbench.strategy.tagged import Tagged

MACHINE = ("memory_gb=4", "peak_tflops=0.1", "memory_gbs=10", "cores=2")
STEPS, ALONE_STEPS = 8, 16
SIZES = [(m, n, k) for m in (128, 256, 512, 1024) for n in (32, 64, 128, 256) for k in (32, 128)]
GROUPED = [(g, m, n) for g in (2, 4) for m in (64, 128, 256, 512) for n in (32, 64, 128)]
WORST_STEP_S = 60.0  # of a launch: none is begun later than that before the end


class Place(NamedTuple):
    """A cluster, and the folder of what was measured there."""

    layout: Layout
    link: str
    intra: str
    folder: Path

    @property
    def words(self) -> tuple[str, ...]:
        """The keys of a training there; a sequence for each of 16 ranks."""
        batch = ("batch=16",) if self.layout.ranks > 8 else ()
        return (f"link={self.link}", f"intra_link={self.intra}", *batch)

    @property
    def rows(self) -> list[dict[str, Any]]:
        file = self.folder / "steps.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main(words: Sequence[str]) -> int:
    told = dict(word.split("=") for word in words)
    numbers = {name: float(told.get(name, of))
               for name, of in (("minutes", 4), ("launches", 3), ("count", 12), ("seed", 7))}  # fmt: skip
    link = told.get("link", "100mbit")
    layout = Layout(*map(int, told.get("layout", "2x4").split("x")))
    where = Place(layout, link, told.get("intra", "400mbit"), Path(f"results/plan-{layout}-{link}"))
    where.folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * numbers["minutes"]
    prepare(where)
    alone = {batch: measured(f"alone-{batch}", request(where, alone=True), where,
                             Setting(micro_batch=batch), until, 2, ALONE_STEPS)
             for batch in (1, 8)}  # fmt: skip
    if not all(alone.values()):
        return 0
    launch_us, step_us = host_us(where, *(float(np.median(alone[batch])) for batch in (1, 8)))
    words = f"launch_us={launch_us:.4g}", f"step_us={step_us:.4g}"
    its = request(where, *words)
    default = default_setting(its)
    settings = its.problem.settings()
    others = [place for place in range(len(settings)) if settings[place] != default]
    chosen = random.Random(int(numbers["seed"])).sample(others, min(int(numbers["count"]), len(others)))
    now = measured("default", its, where, default, until, int(numbers["launches"]), STEPS)
    if not now:
        return 0
    its = request(where, *words, f"current={current(default)}", f"current_ms={np.median(now) / 1e3:.5g}")
    for number in range(1, int(numbers["launches"]) + 1):
        for place in chosen:
            measured(settings[place].label, its, where, settings[place], until, number, STEPS)
    print(f"{layout}, {link}: host {launch_us:.1f} us a kernel, {step_us / 1e3:.1f} ms a step; {len(settings)} "
          f"settings, {len(chosen)} judged, seed {numbers['seed']:g}")  # fmt: skip
    report(its, where, settings.take(np.array(chosen)))
    return 0


def request(where: Place, *more: str, alone: bool = False) -> PlanRequest:
    """Return the plan of all settings that ours runs; alone: of one rank."""
    layout = Layout(1, 1) if alone else where.layout
    links = ("intra_gbs=10", "inter_gbs=10") if alone else (f"costs={where.folder / 'costs.json'}",
                                                            f"calls={where.folder / 'calls.jsonl'}")  # fmt: skip
    batch = f"batch={16 if where.layout.ranks > 8 and not alone else 8}"
    nodes = f"nodes={layout.nodes}", f"gpus_per_node={layout.ranks_per_node}"
    return planned.read(["emulated-2x4", *nodes, batch, *MACHINE, *links, f"gemm={where.folder / 'gemm.jsonl'}",
                         "trainer=commbench", "zero=1", *more])  # fmt: skip


def default_setting(its: PlanRequest) -> Setting:
    """Return what the recipe has where nobody chooses: tensor parallelism in nodes, tokens dropped and gathered."""
    cluster = its.problem.cluster
    tp, nodes = cluster.gpus_per_node, cluster.nodes
    return Setting(tp=tp, dp=nodes, ep=nodes, etp=tp, micro_batch=its.problem.work.batch // nodes,
                   schedule=next(one for one in SCHEDULES if one.name == "drop"))  # fmt: skip


def current(setting: Setting) -> str:
    """Return the words of `current=` for a setting."""
    sizes = (f"{name}{getattr(setting, name)}" for name in ("tp", "ep", "etp", "micro_batch"))
    return ",".join([*sizes, setting.schedule.label])


def prepare(where: Place) -> None:
    """Time products, measure calls of all groups, and fit what links cost to the exchanges among them."""
    table, calls, costs = (where.folder / name for name in ("gemm.jsonl", "calls.jsonl", "costs.json"))
    if not table.exists():
        table.write_text("".join(json.dumps(row) + "\n" for row in products()))
    if not costs.exists():
        command = [sys.executable, "-m", "commbench"]
        runs = where.folder / "runs"
        found = subprocess.run(
            [*command, "sweep", "calls", "transport=gloo", "fabric=emulated", f"layout={where.layout}",
             f"groups={','.join(groups(where.layout))}", f"link={where.link}", f"intra_link={where.intra}",
             "--format", "json", "--no-plots", "-q", "--out", str(runs)],
            check=True, capture_output=True, text=True)  # fmt: skip
        calls.write_text("".join(f"{line}\n" for line in found.stdout.splitlines() if '"case_id"' in line))
        subprocess.run([*command, "model", str(runs / "latest"), "--out", str(costs)], check=True, capture_output=True)


def groups(layout: Layout) -> list[str]:
    """Return the groups whose calls trainings make: all ranks, neighbours, and ranks of one place among neighbours."""
    found = ["world", "rails"]
    for tp in (tp for tp in range(2, layout.ranks_per_node + 1) if layout.ranks_per_node % tp == 0):
        found.append(f"blocks:{tp}")
        if tp < layout.ranks_per_node:
            of_place = [",".join(map(str, range(place, layout.ranks, tp))) for place in range(tp)]
            found.append(f"'ranks:{';'.join(of_place)}'")
    return found


def products() -> list[dict[str, Any]]:
    """Time products on one CPU: the best of 60."""
    import torch

    torch.set_num_threads(1)

    def tflops(flops: float, a: torch.Tensor, b: torch.Tensor) -> float:
        times = []
        for _ in range(60):
            begin = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - begin)
        return flops / min(times) / 1e12

    plain = [{"m": m, "n": n, "k": k, "tflops": tflops(2 * m * n * k, torch.randn(m, k), torch.randn(k, n))}
             for m, n, k in SIZES]  # fmt: skip
    several = [{"groups": g, "m": m, "n": n, "k": 128, "tflops": tflops(
        2 * g * m * n * 128, torch.randn(g, m, 128), torch.randn(g, 128, n))} for g, m, n in GROUPED]  # fmt: skip
    return plain + several


def measured(
    name: str, its: PlanRequest, where: Place, setting: Setting, until: float, launches: int, steps: int
) -> list[float]:
    """Return the launches of a setting that there are, after one more where it lacks some and time is left."""
    known = [row["us"] for row in where.rows if row["name"] == name]
    while len(known) < launches and time.monotonic() + WORST_STEP_S / 4 < until:
        alone = its.problem.cluster.gpus == 1
        own = ("fabric=real", "tp=1", "zero=false") if alone else where.words
        us = validation.train_once(its, setting, where.folder, steps, own)
        with (where.folder / "steps.jsonl").open("a") as out:
            out.write(json.dumps({"name": name, "us": us}) + "\n")
        known.append(us)
    return known


def host_us(where: Place, eight_us: float, one_us: float) -> tuple[float, float]:
    """Return what the host takes for a kernel and for a step: so that one rank's step of eight micro-batches takes as
    much longer than that of one as it did, and that one what it did."""
    settings = Settings.of([Setting(micro_batch=batch) for batch in (1, 8)])

    def planned_us(launch_us: float) -> tuple[float, float]:
        problem = request(where, f"launch_us={launch_us}", alone=True).problem
        eight, one = problem.times(settings, problem.draw(1)).us[0]
        return float(eight), float(one)

    low, high = 0.1, 1e4
    for _ in range(40):
        middle = (low * high) ** 0.5
        eight, one = planned_us(middle)
        low, high = (middle, high) if eight - one < eight_us - one_us else (low, middle)
    return low, max(one_us - planned_us(low)[1], 0.0)


def report(its: PlanRequest, where: Place, settings: Settings) -> None:
    """Print each setting with both times, then regret, the group, coverage and Kendall's tau."""
    by_name: dict[str, list[float]] = {}
    for row in where.rows:
        by_name.setdefault(row["name"], []).append(row["us"])
    there = [place for place in range(len(settings)) if settings[place].label in by_name]
    if len(there) < 2:
        print(f"{len(there)} measured: nothing to compare yet")
        return
    some = settings.take(np.array(there))
    launches = [by_name[settings[place].label] for place in there]
    compare(its, where, some, launches, by_name.get("default"))


def compare(
    its: PlanRequest, where: Place, settings: Settings, launches: Sequence[Sequence[float]],
    default: Sequence[float] | None,
) -> None:  # fmt: skip
    """Print what was planned beside what was measured."""
    us = its.problem.drawn_us(settings)
    low, middle, high = np.quantile(us, (0.05, 0.5, 0.95), axis=0)
    took = np.array([np.median(one) for one in launches])
    for place in np.argsort(took):
        spread = "-".join(f"{end / 1e3:.0f}" for end in (min(launches[place]), max(launches[place])))
        mark = "" if low[place] <= took[place] <= high[place] else " *"
        print(f"{settings[int(place)].label:60} {took[place] / 1e3:6.0f} ms ({spread}), planned "
              f"{middle[place] / 1e3:6.0f} [{low[place] / 1e3:.0f}-{high[place] / 1e3:.0f}] "
              f"{middle[place] / took[place] - 1:+.0%}{mark}")  # fmt: skip
    first = int(np.argmin(middle))
    tied = np.flatnonzero((us < us[:, [first]]).mean(axis=0) >= 0.05)
    group = list(dict.fromkeys([first, *sorted(tied, key=lambda place: middle[place])]))[:5]
    signs = np.sign(np.subtract.outer(took, took)) * np.sign(np.subtract.outer(middle, middle))
    pairs = len(took) * (len(took) - 1)
    best = took.min()
    print(f"launches {min(map(len, launches))} to {max(map(len, launches))}; regret {took[first] / best - 1:.1%}; of "
          f"the group of {len(group)} {took[group].min() / best - 1:.1%}; inside "
          f"{np.mean((low <= took) & (took <= high)):.0%}; half-width {np.median((high - low) / 2 / middle):.0%}; "
          f"median error {np.median(np.abs(middle / took - 1)):.0%}; tau {signs.sum() / pairs:.2f}")  # fmt: skip
    alone = without_sharing(its, where)
    blind = int(np.argmin(alone.times(settings, alone.draw(1)).us[0]))
    always = "" if default is None else f"always the recipe's default {np.median(default) / best - 1:.1%}; "
    print(f"regret of others: {always}links that nobody shares {took[blind] / best - 1:.1%}; any setting (the median) "
          f"{np.median(took) / best - 1:.1%}")  # fmt: skip


def without_sharing(its: PlanRequest, where: Place) -> PlanProblem:
    """Return the problem as who knows nominal rates alone sees it: each rank has a node's links for itself."""
    problem = its.problem
    of_node = {"intra": 1, "inter": problem.cluster.gpus_per_node}
    links = {name: LinkCost(gbs=Tagged(float(rate.removesuffix("mbit")) / 8e3 * of_node[name], "declared"),
                            alpha_us=Tagged(100.0, "default"))
             for name, rate in (("intra", where.intra), ("inter", where.link))}  # fmt: skip
    cluster = dataclasses.replace(problem.cluster, links=links, costs=None)
    return dataclasses.replace(problem, cluster=cluster, calls=None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
