"""Wrong results that come and go, by the hundred: how many measurements have numbers nevertheless. (Resumable.)

make bench ARGS="plants OUT.jsonl"    goes on where OUT.jsonl stops, then prints the table of what is there
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from commbench import transports
from commbench.rank_info import RankInfo
from commbench.records import Status
from tests.support import planted_calls
from tests.support.planted_calls import KINDS, RULES, WAYS, Outcome, Plant
from tests.support.ranks import on_ranks

PLANTS = {"scripted": 200, "gloo": 150, "mpi": 150}
RIGHT = {"scripted": 400, "gloo": 300, "mpi": 300}
AT_ONCE = 25  # in one process group


def every() -> Iterator[Plant]:
    """All plants, then as many runs without a fault as there shall be; a number belongs to one of them for good."""
    number = 0
    for right, many in ((False, PLANTS), (True, RIGHT)):
        for transport, count in many.items():
            for _ in range(count):
                draw = random.Random(f"plants/{number}")
                rule = "none" if right else RULES[number % 3]
                yield Plant(
                    number,
                    transport,
                    draw.choice(("isolated", "isolated", "pipelined")),
                    rule,
                    draw.choice(KINDS) if rule != "none" else "",
                    draw.randint(2, 50) if rule == "period" else 0,
                    draw.randrange(len(WAYS)),
                    4 if transport == "scripted" else 2,
                    "warm",
                    draw.choice((128, 1024, 16384, 262144)),
                )
                number += 1


def take(plants: list[Plant], file: Path) -> None:
    """Run plants of one transport in one process group; rank 0 writes."""
    name, ranks = plants[0].transport, plants[0].ranks
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "logs" / "a").mkdir(parents=True)
        if name == "scripted":
            for found in planted_calls.scripted(Path(folder), plants):
                tell(file, *found)
        elif name == "gloo":
            on_ranks(name, ranks, lambda made: on_rank(made, folder, plants, file))
        else:
            asked = json.dumps([folder, [plant.number for plant in plants], str(file)])
            command = ["mpiexec", "-n", str(ranks), sys.executable, "-m", "tests.bench.plants", asked]
            subprocess.run(command, check=True, timeout=600)


def on_rank(transport: Any, folder: str, plants: list[Plant], file: Path) -> None:
    for plant, outcome in planted_calls.on_rank(transport, Path(folder), plants):
        if transport.rank == 0:
            tell(file, plant, outcome)


def tell(file: Path, plant: Plant, outcome: Outcome) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps([plant.number, outcome]) + "\n")


def under_mpi(asked: str) -> None:
    """This process is a rank already."""
    from mpi4py import MPI

    folder, numbers, file = json.loads(asked)
    world = MPI.COMM_WORLD
    place = {"rank": world.rank, "size": world.size, "local_rank": world.rank, "local_size": world.size}
    transport = transports.load("mpi")({"layout": (1, world.size)})
    transport.connect(RankInfo(**place, launcher="bench"))
    on_rank(transport, folder, [plant for plant in every() if plant.number in numbers], Path(file))
    transport.close()


def table(found: dict[int, Outcome]) -> None:
    """Print, for what has happened, how many were timed, and how many as stated should have been."""
    print(f"{'transport':<10} {'mode':<10} {'fault':<8} {'runs':>5} {'happened':>9} {'timed':>6} {'stated':>7}")
    groups: dict[tuple[str, str, str], list[tuple[Plant, Outcome]]] = {}
    for plant in every():
        if plant.number in found:
            groups.setdefault((plant.transport, plant.mode, plant.rule), []).append((plant, found[plant.number]))
    for (transport, mode, rule), members in sorted(groups.items()):
        happened = [(plant, outcome) for plant, outcome in members if outcome.struck or rule == "none"]
        timed = sum(outcome.status == Status.OK for _, outcome in happened)
        stated = sum(1 - planted_calls.seen(plant) for plant, _ in happened) if rule != "none" else len(members)
        print(f"{transport:<10} {mode:<10} {rule:<8} {len(members):>5} {len(happened):>9} {timed:>6} {stated:>7.1f}")
    for number, outcome in found.items():
        if outcome.status not in (Status.OK, Status.WRONG_RESULT):
            print(f"{number}: {outcome.status}: {outcome.reason}")


def main(words: list[str] | None = None) -> int:
    (name,) = words or ["plants.jsonl"]
    file = Path(name).resolve()
    lines = file.read_text().splitlines() if file.exists() else []
    done = {number for number, _ in map(json.loads, lines)}
    todo = [plant for plant in every() if plant.number not in done]
    while todo:
        now = [plant for plant in todo if plant.transport == todo[0].transport][:AT_ONCE]
        take(now, file)
        todo = [plant for plant in todo if plant not in now]
    table({number: Outcome(*outcome) for number, outcome in map(json.loads, file.read_text().splitlines())})
    return 0


if __name__ == "__main__":
    under_mpi(sys.argv[1])
