"""commbench on GPUs beside nccl-tests in one go, in turn: python -m tests.bench nccl --nccl-tests PATH --out DIR.

Each round runs commbench (one launch) and nccl-tests in all of its modes, backwards every other round. DIR gets
rows.jsonl (one line for each tool, way, size and round, written as they come), table.md and summary.json (after each
round), output.txt (what every program printed) and runs.tar.gz (commbench's run folders). Nothing that fails, hangs or
is refused stops the rest; Ctrl-C and SIGTERM write what there is. `--rows FILE` adds the rows of an earlier rows.jsonl
as rounds before these, so that short sessions add up; with `--rounds 0` it only makes the report again.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commbench.errors import UsageError
from commbench.formats import nccl_tests
from commbench.processes.held import held
from commbench.units import format_size, parse_size
from tests.bench import nccl_report
from tests.bench.nccl_report import MODES, OURS, THEIRS

REPOSITORY = Path(__file__).resolve().parents[2]
CTA = "NCCL_CTA_POLICY=2"
RESERVE_S = 5.0  # of the budget, for the report
LEAST_S = 5.0  # with less than this left nothing is started
GRACE_S = 15.0  # for commbench to end its ranks
_IGNORED = re.compile(r"^Option -.*(?:Ignoring|Defaulting to).*", re.MULTILINE)
_FROM_ROW = (
    *("case_id", "reason", "algorithm", "params", "mode", "buffers", "dtype", "env", "time_us_low", "time_us_high"),
    *("host_us", "bound_gbps", "wrong", "samples", "calls_per_sample", "stop_reason", "skew_us"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended. `ended` says who ended it, if it did not itself: "timeout", "interrupt"."""

    code: int
    seconds: float
    out: str
    err: str
    ended: str = ""

    @property
    def last_words(self) -> str:
        """The last line that says something, of stderr if there is one."""
        lines = [line.strip() for text in (self.out, self.err) for line in text.splitlines() if line.strip(" #\t")]
        return lines[-1][:300] if lines else "it printed nothing"


@dataclass(slots=True)
class Piece:
    """What a round consists of."""

    tool: str
    name: str
    command: list[str]
    env: dict[str, str]
    timeout_s: float
    longest_s: float = 0.0
    failures: int = 0  # without any result
    given_up: bool = False


@dataclass(slots=True)
class Session:
    """All that was found so far, and where it goes."""

    out: Path
    gpus: int
    seconds: float | None
    begun: float = field(default_factory=time.monotonic)
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    about: list[str] = field(default_factory=list)

    def left_s(self) -> float:
        return float("inf") if self.seconds is None else self.begun + self.seconds - RESERVE_S - time.monotonic()

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            print(f"  note: {text}", flush=True)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows += rows
        with (self.out / "rows.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def keep(self, title: str, outcome: Outcome) -> None:
        """Only the end of stderr: progress is long."""
        how = f"exit {outcome.code}{f', {outcome.ended}' if outcome.ended else ''}, {outcome.seconds:.1f} s"
        text = f"=== {title}: {how}\n"
        text += f"{outcome.out}\n--- stderr\n{outcome.err[-20000:]}\n"
        with (self.out / "output.txt").open("a") as file:
            file.write(text)

    def oops(self, where: str, error: Exception) -> None:
        """A mistake of this script's own: told, and gone on."""
        self.note(f"{where}: {type(error).__name__}: {error}")
        with (self.out / "output.txt").open("a") as file:
            file.write(f"=== {where}\n{''.join(traceback.format_exception(error))}\n")

    def report(self) -> str:
        table = nccl_report.collect(self.rows, self.gpus)
        about = [*self.about, f"{table.rounds} rounds, {time.monotonic() - self.begun:.0f} s"]
        text = nccl_report.markdown(table, about, self.notes)
        (self.out / "table.md").write_text(text)
        (self.out / "summary.json").write_text(
            json.dumps(nccl_report.summary(table, about, self.notes), indent=1) + "\n"
        )
        return text


def commbench_command(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "commbench", "sweep", *words]


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench nccl", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nccl-tests", type=Path, metavar="PATH", help="alltoall_perf; default: the one on PATH")
    parser.add_argument("--nccl-lib", type=Path, metavar="DIR", help="of its libnccl.so.2; default: nvidia.nccl's")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results" / "nccl-tests", metavar="DIR")
    parser.add_argument("-b", dest="min_bytes", default="1K", metavar="SIZE")
    parser.add_argument("-e", dest="max_bytes", default="4G", metavar="SIZE")
    parser.add_argument("-f", dest="factor", type=int, default=4, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--gpus", type=int, metavar="N", help="default: what nvidia-smi -L lists")
    parser.add_argument("--seconds", type=float, metavar="S", help="budget; no round is begun that would not fit")
    parser.add_argument("--cap", default="0.3", metavar="S", help="seconds per measurement of commbench (0.3)")
    parser.add_argument("--timeout", type=float, default=120, metavar="S", help="of one nccl-tests (120)")
    parser.add_argument("--our-timeout", type=float, default=480, metavar="S", help="of one commbench sweep (480)")
    parser.add_argument("--no-cta", dest="cta", action="store_false", help=f"leave the sweep with {CTA} out")
    parser.add_argument("--modes", metavar="A,B", help=f"of nccl-tests: --modes='{','.join(MODES)}'")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another word for commbench")
    parser.add_argument("--rows", type=Path, action="append", default=[], metavar="FILE", help="rows.jsonl to add to")
    return parser.parse_args(words)


def main(words: Sequence[str] = ()) -> int:
    """0 if there is a report."""
    args = arguments(words)
    gpus = args.gpus or count_gpus()
    if not gpus:
        print("no GPUs: nvidia-smi -L lists none (--gpus N says how many)", file=sys.stderr)
        return 2
    try:
        low, high = parse_size(args.min_bytes), parse_size(args.max_bytes)
        modes = args.modes.split(",") if args.modes else list(MODES)
        if unknown := [mode for mode in modes if mode not in MODES]:
            raise UsageError(f"unknown mode {unknown[0]!r}; known: {', '.join(MODES)}")
        if bad := [word for word in args.set if "=" not in word]:
            raise UsageError(f"--set {bad[0]}: expected KEY=VALUE")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    session = Session(args.out.resolve(), gpus, args.seconds)
    earlier = read_rows(session, args.rows)
    for name in ("rows.jsonl", "output.txt"):
        if (session.out / name).exists():
            os.replace(session.out / name, session.out / f"{name}.old")
    session.add(earlier)
    first = max((row["round"] for row in earlier), default=0) + 1
    with tempfile.TemporaryDirectory(prefix="nccl-beside-", ignore_cleanup_errors=True) as folder, interruptible():
        work = Path(folder)
        program = args.nccl_tests or (Path(found) if (found := shutil.which("alltoall_perf")) else None)
        pieces = ours(args, gpus, (low, high), work / "runs")
        session.about += describe(gpus, (args.min_bytes, args.max_bytes, args.factor), args.cap)
        if program is None:
            session.note("no alltoall_perf on PATH, and none given with --nccl-tests: nothing to compare with")
        else:
            pieces += theirs(args, program.resolve(), gpus, (low, high), modes)
        try:
            rounds(session, pieces, range(first, first + args.rounds), work)
        except KeyboardInterrupt:
            session.note("interrupted")
        text = session.report()
        pack(session, work / "runs")
    print(f"\n{text}\nwritten to {args.out}", flush=True)
    return 0


def ours(args: argparse.Namespace, gpus: int, sizes: tuple[int, int], runs: Path) -> list[Piece]:
    shared = {"transport": "nccl", "nodes": "1", "ranks_per_node": str(gpus), "launches": "1", "cap": args.cap}
    shared |= {"sizes.min": str(sizes[0]), "sizes.max": str(sizes[1]), "sizes.factor": str(args.factor)}
    every = {"algorithm": "direct,symm_store,symm_copy_engine", "mode": "isolated,pipelined,graph"}
    plans = {"all": every | {"buffers": "plain,registered,symmetric", "own_ctas": "0,16"}}
    if args.cta:
        copies = {"algorithm": "direct", "mode": "pipelined,graph", "buffers": "symmetric"}
        plans[CTA] = copies | {f"env.{CTA.split('=')[0]}": CTA.split("=")[1]}
    given = dict(word.split("=", 1) for word in args.set)
    paths = [str(REPOSITORY), str(REPOSITORY / "kernels"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    pieces = []
    for name, plan in plans.items():
        # --set may change any key of the first sweep; the second is what it is called, and takes the others.
        keys = shared | plan | {key: value for key, value in given.items() if name == "all" or key not in plan}
        if "symm_copy_engine" not in keys["algorithm"]:
            keys.pop("own_ctas", None)  # which would have no effect
        words = ["gpu", *(f"{key}={value}" for key, value in keys.items())]
        words += ["--out", str(runs), "--no-plots", "--format", "json"]
        pieces.append(Piece(OURS, name, commbench_command(words), env, args.our_timeout))
    return pieces


def theirs(
    args: argparse.Namespace, program: Path, gpus: int, sizes: tuple[int, int], modes: Sequence[str]
) -> list[Piece]:
    library = args.nccl_lib or nccl_library()
    paths = [str(library.resolve()) if library else "", os.environ.get("LD_LIBRARY_PATH", "")]
    env = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths))}
    shared = [str(program), "-t", str(gpus), "-g", "1", "-d", "float", "-n", "20", "-w", "5", "-c", "1"]
    shared += ["-b", str(sizes[0]), "-e", str(sizes[1]), "-f", str(args.factor)]
    return [Piece(THEIRS, mode, [*shared, *MODES[mode]], env, args.timeout) for mode in modes]


def rounds(session: Session, pieces: Sequence[Piece], numbers: range, work: Path) -> None:
    for number in numbers:
        alive = [piece for piece in pieces if not piece.given_up]
        expected = sum(piece.longest_s for piece in alive)
        if not alive or max(expected, LEAST_S) > session.left_s():
            reason = (
                f"it takes {expected:.0f} s, {max(0, session.left_s()):.0f} s are left" if alive else "nothing works"
            )
            session.note(f"round {number} and later ones not begun: {reason}")
            return
        print(f"round {number}", flush=True)
        late = []
        for piece in alive if number % 2 else reversed(alive):
            if session.left_s() < max(LEAST_S, 0.8 * piece.longest_s):
                late.append(f"{piece.tool} {piece.name}")
                continue
            try:
                one(session, piece, number, work)
            except Exception as error:
                session.oops(f"round {number}: {piece.tool} {piece.name}", error)
        if late:
            session.note(f"round {number}: no time left for {', '.join(late)}")
        try:
            session.report()
        except Exception as error:
            session.oops(f"report of round {number}", error)


def one(session: Session, piece: Piece, number: int, work: Path) -> None:
    """One piece of one round; raises KeyboardInterrupt after it has kept what the piece printed before one."""
    title = f"round {number}: {piece.tool} {piece.name}"
    grace_s = GRACE_S if piece.tool == OURS else 0.0
    limit_s = min(piece.timeout_s, max(session.left_s() - grace_s, 1.0))
    try:
        outcome = run(piece.command, piece.env, limit_s, work, grace_s)
    except OSError as error:
        session.note(f"{title}: cannot be started: {error}")
        piece.given_up = True
        return
    piece.longest_s = max(piece.longest_s, outcome.seconds)
    session.keep(f"{title}: {' '.join(piece.command)}", outcome)
    found = read_ours(outcome.out) if piece.tool == OURS else read_theirs(session, title, piece, outcome, session.gpus)
    for row in found:
        row |= {"tool": piece.tool, "round": number, "gpus": session.gpus}
        if row["status"] == "ok" and row["time_us"]:
            row["busbw_gbps"] = row["size_bytes"] / row["time_us"] / 1e3 * (session.gpus - 1) / session.gpus
    session.add(found)
    tell(session, title, found)
    good = sum(nccl_report.usable(row) for row in found)
    print(f"  {piece.tool} {piece.name}: {good} results, {outcome.seconds:.1f} s", flush=True)
    if outcome.ended == "timeout":
        why = "its limit" if limit_s == piece.timeout_s else "all that was left"
        session.note(f"{title}: cut off after {outcome.seconds:.0f} s, {why}; {good} results kept")
    elif outcome.code and not outcome.ended:
        what = (
            f"ended with exit code {outcome.code} after {good} results"
            if good
            else f"refused, exit code {outcome.code}"
        )
        session.note(f"{title}: {what}: {outcome.last_words}")
    elif not good and not outcome.ended and not piece.given_up:
        session.note(f"{title}: no results: {outcome.last_words}")
    if not good:
        piece.failures += 1
        piece.given_up |= outcome.ended == "timeout" or piece.failures > 1
    if outcome.ended == "interrupt":
        raise KeyboardInterrupt


def tell(session: Session, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """What rows without a right result say, each thing once."""
    failed: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        reason = row.get("reason") or ""
        if row["status"] == "skipped":
            session.note(f"skipped: {row['algorithm']} on {row['buffers']} buffers: {reason}")
        elif not nccl_report.usable(row):
            place = f"{row['way']} at {format_size(row['size_bytes'])}"
            failed.setdefault((row["status"], reason), []).append(place)
    for (status, reason), places in failed.items():
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        session.note(f"{title}: {status}: {places[0]}{more}{f': {reason}' if reason else ''}")


def run(command: Sequence[str], env: Mapping[str, str], limit_s: float, folder: Path, grace_s: float) -> Outcome:
    """In a process group of its own, of which nothing is left then. With `grace_s` it is first asked to end.

    No session of its own: where this one is killed, whoever killed it finds that one as well.
    """
    begin = time.monotonic()
    paths = folder / "stdout", folder / "stderr"
    ended = ""
    with paths[0].open("wb") as out, paths[1].open("wb") as err:
        try:
            with held():
                child = subprocess.Popen(
                    command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err, process_group=0
                )
            child.wait(None if limit_s == float("inf") else max(limit_s, 0.1))
        except subprocess.TimeoutExpired:
            ended = "timeout"
        except KeyboardInterrupt:
            ended = "interrupt"
        try:
            if ended and grace_s:
                child.terminate()
                child.wait(grace_s)
        except subprocess.TimeoutExpired:
            pass
        except KeyboardInterrupt:
            ended = "interrupt"
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):  # one that hangs in the driver stays
            child.wait(10)
    stdout, stderr = (path.read_bytes().decode(errors="replace") for path in paths)
    code = child.returncode if child.returncode is not None else -signal.SIGKILL
    return Outcome(code, time.monotonic() - begin, stdout, stderr, ended)


def read_ours(text: str) -> list[dict[str, Any]]:
    """Rows of `--format json`; a line that was cut off is none. `time_us` is here the mean over ranks."""
    rows = []
    for line in text.splitlines():
        try:
            raw = json.loads(line)
            env = " ".join(f"{name}={value}" for name, value in (raw.get("env") or {}).items())
            params = "".join(f" {name}={value}" for name, value in (raw.get("params") or {}).items())
            way = f"{raw['algorithm']}{params} {raw['mode']} {raw['buffers']} {env}".strip()
            row = {"way": way, "size_bytes": int(raw["size_bytes"]), "status": raw["status"]}
            row |= {"time_us": raw.get("time_us_mean") or raw.get("time_us"), "slowest_us": raw.get("time_us")}
            rows.append(row | {name: raw.get(name) for name in _FROM_ROW})
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return rows


def read_theirs(session: Session, title: str, piece: Piece, outcome: Outcome, gpus: int) -> list[dict[str, Any]]:
    """Out-of-place results. None where an option was ignored: they are then of another mode."""
    if ignored := _IGNORED.search(f"{outcome.out}\n{outcome.err}"):
        session.note(f"{title}: refused: {ignored[0].strip()}")
        piece.given_up = True
        return []
    lines = outcome.out.splitlines()
    while True:
        try:
            results = nccl_tests.read_text("\n".join(lines), gpus).results
            break
        except UsageError as error:  # half a line where it was ended, or one with another thread's words in it
            place = re.match(r"line (\d+):", str(error))
            session.note(f"{title}: left out: {error}")
            if place is None or not lines[int(place[1]) - 1]:
                results = []
                break
            lines[int(place[1]) - 1] = ""
    for line in lines:
        if line.startswith("# nccl-tests version") and line.strip("# ") not in session.about:
            session.about.append(line.strip("# "))
    return [
        {
            "way": piece.name,
            "size_bytes": result.size_bytes,
            "status": "wrong_result" if result.wrong else "ok",
            "time_us": result.time_us,
            "wrong": result.wrong,
        }
        for result in results
        if not result.in_place and result.size_bytes
    ]


def read_rows(session: Session, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Rows of earlier sessions, their rounds numbered on from file to file; unreadable ones are left out."""
    rows: list[dict[str, Any]] = []
    for path in paths:
        before = max((row["round"] for row in rows), default=0)
        read = 0
        try:
            lines = path.read_text().splitlines()
        except OSError as error:
            session.note(f"{path}: {error.strerror}")
            continue
        for line in lines:
            try:
                row = json.loads(line)
                row["round"] += before
                if row["tool"] in (OURS, THEIRS) and {"way", "size_bytes", "status", "gpus"} <= row.keys():
                    rows.append(row)
                    read += 1
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        session.about.append(f"{read} rows of an earlier session: {path}")
    return rows


def count_gpus() -> int:
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return len(visible.split(","))
    return len(gpu_names())


def gpu_names() -> list[str]:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.split(":", 1)[1].split("(UUID")[0].strip() for line in done.stdout.splitlines() if line[:4] == "GPU "]


def nccl_library() -> Path | None:
    """Of the package that torch uses; torch itself need not be imported."""
    try:
        spec = importlib.util.find_spec("nvidia.nccl")
    except (ImportError, ValueError):
        return None
    folders = [Path(place) / "lib" for place in (spec.submodule_search_locations or [])] if spec else []
    return next((folder for folder in folders if (folder / "libnccl.so.2").exists()), None)


def describe(gpus: int, sizes: tuple[str, str, int], cap: str) -> list[str]:
    names = sorted(set(gpu_names()))
    about = [f"{gpus} GPUs: {', '.join(names) or 'unknown'}; {time.strftime('%Y-%m-%d %H:%M')}"]
    about.append(f"{sizes[0]} to {sizes[1]}, factor {sizes[2]}, fp32; at most {cap} s per measurement of ours")
    variables = {name: value for name, value in os.environ.items() if name.startswith("NCCL_")}
    if variables:
        about.append("both with " + " ".join(f"{name}={value}" for name, value in sorted(variables.items())))
    return about


def pack(session: Session, runs: Path) -> None:
    """One file, as a run has many small ones."""
    if not runs.is_dir():
        return
    try:
        with tarfile.open(session.out / "runs.tar.gz", "w:gz", compresslevel=1) as archive:
            archive.add(runs, "runs")
    except (OSError, tarfile.TarError) as error:
        print(f"commbench's run folders are not kept: {error}", file=sys.stderr)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP mean what Ctrl-C does, and Ctrl-C means it in the background too."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    try:
        before = {number: signal.signal(number, interrupt) for number in numbers}
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
