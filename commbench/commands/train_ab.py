"""`commbench train ab`: the same training under two settings, in fresh launches by turns."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commbench import ab, trained, training, transports
from commbench.ab import ARMS, BASELINE, CANDIDATE, Launched, Outcome
from commbench.commands import train
from commbench.commands.session import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from commbench.errors import CorruptFile, UsageError
from commbench.profile import file as profile_file
from commbench.profile.table import Table
from commbench.stats import PAIRS_FOR_CLAIM
from commbench.store import RunFolder, append_line, write_atomically
from commbench.training import TrainConfig

if TYPE_CHECKING:
    from commbench.model import Model

_ROUNDS = 10
_DEFAULTS = ("steps=20", "val_every=0", "save_every=null", "breakdown_steps=0")
_DEFAULT = ("default", "none", "null")  # in place of a profile's path
# What prediction knows about; `profile` stands for what it has chosen.
_EXCHANGES = frozenset({"profile", "allow_mismatch", "schedule", "chunks", "groups", "r", "tp_tokens"})
_SAME = 1e-12  # relative: losses that differ by no more are called identical


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    name: str
    words: tuple[str, ...]
    config: TrainConfig


def run(request: train.Request) -> int:
    """The exit code: 0 there is an answer, 1 a launch broke, 130 interrupted. Raises `CommbenchError`."""
    arms, rounds, costs = arms_of(request.words)
    if request.show_config:
        sys.stdout.write("".join(f"{arm.name}: {arm.config.to_json()}\n" for arm in arms.values()))
        return EXIT_OK
    transports.check(arms[BASELINE].config.transport)
    model = None if costs is None else _model(costs, arms[BASELINE].config)
    run_folder = RunFolder.create(request.out, "train-ab")
    run_folder.link_latest()
    folder = run_folder.path
    for name in ("logs", "samples"):
        (folder / name).rmdir()
    talk = train.Line(quiet=request.quiet)
    steps = arms[BASELINE].config.steps
    note = f"{_names(arms)}: {_count(rounds, 'round')} of {_count(steps, 'step')}, in {folder}"
    talk.note(note)
    calibration, code = _launch(request, arms[BASELINE], folder, -1)
    if calibration is None:
        return code
    expected, why = _predicted(calibration, arms, model)
    talk.note("predicted before the rounds: " + (f"{expected:.3f}x" if expected is not None else f"nothing: {why}"))
    launches: list[Launched] = []
    for number in range(rounds):
        for name in ARMS if number % 2 == 0 else ARMS[::-1]:
            found, code = _launch(request, arms[name], folder, number)
            if found is None:
                return code
            launches.append(found)
            append_line(folder / "launches.jsonl", json.dumps(dataclasses.asdict(found)))
        talk.note(f"round {number + 1} of {rounds}: {_so_far(launches)}")
    outcome = ab.compare(launches)
    _write(request, folder, arms, launches, outcome, expected)
    return EXIT_OK


def arms_of(words: Sequence[str]) -> tuple[dict[str, Arm], int, Path | None]:
    """Both arms, the number of rounds, and the file of a cost model. Raises `UsageError`.

    `baseline=FILE` and `candidate=FILE` name profiles, `default` is none; `baseline.KEY=VALUE` is any key of one arm.
    """
    common, own, rounds = [], {name: list[str]() for name in ARMS}, _ROUNDS
    costs: Path | None = None
    for word in words:
        key, _, value = word.partition("=")
        arm, _, inner = key.partition(".")
        if arm in ARMS:
            profile = "null" if value in _DEFAULT else value
            own[arm].append(f"{inner}={value}" if inner else f"profile={profile}")
        elif key == "rounds":
            rounds = _whole(value)
        elif key == "model":
            costs = Path(value)
        else:
            common.append(word)
    typed = {word.partition("=")[0] for word in common}
    common += [word for word in _DEFAULTS if word.partition("=")[0] not in typed]
    arms = {}
    for name in ARMS:
        words = (*common, *own[name])
        arms[name] = Arm(name=name, words=words, config=training.compose(words)[0])
    one, two = (arms[name].config for name in ARMS)
    if one == two:
        raise UsageError("baseline and candidate are the same", hint="candidate=p.json, or candidate.KEY=VALUE")
    if changed := two.changed(one):
        told = ", ".join(f"{key} ({there} and {here})" for key, (here, there) in changed.items())
        raise UsageError(f"the arms would train different models: {told}",
                         hint="arms may differ in what only changes time: profile, schedule, dispatch, ..")  # fmt: skip
    if one.steps != two.steps:
        raise UsageError(f"the arms have {one.steps} and {two.steps} steps", hint="steps=N for both")
    return arms, rounds, costs


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"rounds={text}", hint=f"a whole number; a claim of a gain takes {PAIRS_FOR_CLAIM}")
    return int(text)


def _launch(request: train.Request, arm: Arm, folder: Path, number: int) -> tuple[Launched | None, int]:
    """One training from its beginning, in a run folder of its own. None: it broke, or was stopped; with the code."""
    its = replace(request, words=arm.words, out=folder, quiet=True, format="none")
    code, run_folder = train.once(its)
    if code != EXIT_OK:
        return None, EXIT_INTERRUPTED if code == EXIT_INTERRUPTED else EXIT_FAILED
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return ab.launched(arm.name, number, lines, arm.config.batch * arm.config.context), EXIT_OK


def _model(path: Path, config: TrainConfig) -> Model:
    """As `commbench model --out` writes it. Raises `UsageError` where it is not of these ranks' links."""
    from commbench.model import Model

    hint = "commbench model RUN --out FILE, of runs on the links of the training"
    try:
        raw = json.loads(path.read_text())
        model = Model.from_dict(raw if isinstance(raw, dict) else {})
    except OSError as error:
        raise UsageError(f"no cost model {str(path)!r}: {error.strerror}", hint=hint) from error
    except ValueError as error:
        raise CorruptFile(f"{path} is no cost model: {error}", hint=hint) from error
    texts = [fitted.text for fitted in model.settings.values()]
    links = f"{config.transport}, emulated: {config.emulated}, " if config.emulated else f"{config.transport}, "
    fits = len(texts) == 1 and texts[0].startswith(links) and ("emulated:" in texts[0]) == bool(config.emulated)
    if not fits:
        raise UsageError(f"{path} has the costs of {'; '.join(texts) or 'nothing'}, and the training is on "
                         f"{links.removesuffix(', ')}", hint=hint)  # fmt: skip
    return model


def _predicted(calibration: Launched, arms: Mapping[str, Arm], model: Model | None) -> tuple[float | None, str]:
    """The ratio, or why there is none."""
    one, two = (dataclasses.asdict(arms[name].config) for name in ARMS)
    if others := [key for key in one if one[key] != two[key] and key not in _EXCHANGES]:
        return None, f"it knows exchanges alone, and the arms differ in {', '.join(others)}"
    tables = [_table(arms[name].config) for name in ARMS]
    known = [table for table in tables if table is not None]
    if not known and model is None:
        return None, "there is neither a profile of these ranks nor model=FILE"
    expected = importlib.import_module(training.EXPECTED)  # torch, which nothing else here needs
    try:
        times = [expected.exchanges_us(arms[name].config, table, known, model)
                 for name, table in zip(ARMS, tables, strict=True)]  # fmt: skip
    except UsageError as error:  # links that the model has not seen
        return None, f"{error}; {error.hint}"
    if None in times:
        return (
            None,
            "a schedule computes beside its exchanges" if model else "nobody has measured these; see model=FILE",
        )
    return ab.predicted(calibration, *times), "no time is spent in exchanges"


def _table(config: TrainConfig) -> Table | None:
    """Of the scope that the arm's ranks are started for; None without a profile, or where no one scope is theirs."""
    scope = train.scope_of(config)
    if config.profile is None or scope is None:
        return None
    return Table(profile_file.load(Path(config.profile)), scope.id)


def _names(arms: Mapping[str, Arm]) -> str:
    return ", ".join(trained.differences([dataclasses.asdict(arms[name].config) for name in ARMS], " and "))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _so_far(launches: Sequence[Launched]) -> str:
    last = {one.arm: one for one in launches[-2:]}
    return f"{last[CANDIDATE].tokens_per_s / last[BASELINE].tokens_per_s:.3f}x"


def table(outcome: Outcome, expected: float | None) -> list[str]:
    """For people."""
    interval = "no interval" if outcome.low is None else f"{outcome.low:.3f} - {outcome.high:.3f}"
    lines = [f"{'arm':<10}{'tokens/s':>12}{'waits for communication':>26}"]
    for arm in ARMS:
        lines.append(f"{arm:<10}{outcome.tokens_per_s[arm]:>12.0f}{100 * outcome.exposed[arm]:>24.1f} %")
    pairs = _count(outcome.pairs, "pair")
    lines.append(f"# throughput: {outcome.ratio:.3f}x ({interval}, {pairs} of launches): {outcome.verdict}")
    if not outcome.claim:
        lines.append(f"# a claim of a gain takes {PAIRS_FOR_CLAIM} pairs: rounds={PAIRS_FOR_CLAIM}")
    if expected is not None:
        lines.append(f"# predicted before: {expected:.3f}x; measured / predicted {outcome.ratio / expected:.3f}")
    return [*lines, f"# losses {_losses(outcome)}"]


def _losses(outcome: Outcome) -> str:
    if outcome.losses == 0:
        return "of both arms are identical at every step"
    text = f"of the arms differ by {outcome.losses:.1e} at most, at the first step by {outcome.first:.1e}; "
    if outcome.apart > _SAME:  # on GPUs sums have no fixed order, and a training makes little differences large
        return text + f"launches of one arm by {outcome.apart:.1e} and {outcome.first_apart:.1e}"
    if outcome.losses <= _SAME:
        return text + "that is rounding"
    return text + "launches of one arm are identical: sums in another order, or a mistake"


def _write(
    request: train.Request, folder: Path, arms: Mapping[str, Arm], launches: Sequence[Launched], outcome: Outcome,
    expected: float | None,
) -> None:  # fmt: skip
    about: dict[str, Any] = {
        **dataclasses.asdict(outcome), "verdict": str(outcome.verdict), "predicted": expected,
        "arms": {name: json.loads(arm.config.to_json()) for name, arm in arms.items()},
        "command": ["commbench", "train", "ab", *request.words],
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    write_atomically(folder / "ab.json", json.dumps(about, indent=1) + "\n")
    if request.format == "json":
        sys.stdout.write(json.dumps(about) + "\n")
    else:
        sys.stdout.write("\n".join(table(outcome, expected)) + "\n")
    talk = train.Line(quiet=request.quiet)
    try:
        from commbench.plots.ab import draw

        talk.note(f"plot: {draw(launches, outcome, expected, _names(arms), folder / 'plots' / 'ab.png')}")
    except (OSError, ValueError) as error:
        talk.note(f"no plot: {error}")


__all__ = ["arms_of", "run", "table"]
