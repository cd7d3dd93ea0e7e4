"""The engine of `commbench train ab`: the same training under two settings, in fresh launches by turns."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import commbench
from commbench.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, CommbenchError, CorruptFile, UsageError, unknown
from commbench.machine import metadata
from commbench.profile import file as profile_file
from commbench.profile.table import Table
from commbench.run_folder import RunFolder, append_line, timestamp
from commbench.stats import PAIRS_FOR_CLAIM
from commbench.sweep import prepare
from commbench.sweep.session import interrupt_on_sigterm
from commbench.train import ab, launch, results
from commbench.train import config as training
from commbench.train.ab import ARMS, BASELINE, CANDIDATE, Launched
from commbench.train.ab_table import count, names, table
from commbench.train.config import TrainConfig
from commbench.train.progress import TrainConsole, write

if TYPE_CHECKING:
    from commbench.cost_model import Model

_ROUNDS = 10
_DEFAULTS = ("steps=20", "val_every=0", "save_every=null", "breakdown_steps=0")
_DEFAULT = ("default", "none", "null")  # in place of a profile's path
# What prediction knows about; `profile` stands for what it has chosen.
_EXCHANGES = frozenset({"profile", "allow_mismatch", "schedule", "chunks", "groups", "r", "tp_tokens"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    name: str
    words: tuple[str, ...]
    config: TrainConfig
    env: Mapping[str, str]

    def settings(self) -> dict[str, Any]:
        """Every key, with the variables that ranks are given."""
        return {**dataclasses.asdict(self.config), **{f"env.{name}": value for name, value in self.env.items()}}


class _Stopped(Exception):
    """A launch that has not ended as it should: with the exit code of the whole."""


def create(request: launch.TrainRequest, arms: Mapping[str, Arm], rounds: int, costs: Path | None) -> Comparison:
    """Check what ranks would find missing, and make the folder. Raises `CommbenchError`."""
    expected = importlib.import_module(training.EXPECTED)  # torch, which nothing else here needs
    for arm in arms.values():
        launch.check(arm.config)
        expected.check(arm.config)
    model = None if costs is None else _model(costs, arms[BASELINE].config)
    return Comparison(request, arms, rounds, model)


class Comparison:
    """What an A/B knows by now, which `ab.json` has from the beginning."""

    def __init__(self, request: launch.TrainRequest, arms: Mapping[str, Arm], rounds: int, model: Model | None) -> None:
        self._request, self._arms, self._rounds, self._model = request, arms, rounds, model
        self._console = TrainConsole(quiet=request.quiet)
        self._launches: list[Launched] = []
        self._calibration: Launched | None = None
        self._predicted: float | None = None
        self._doing = ""
        self._folder = RunFolder.create(request.out, "train-ab")
        self._folder.link_latest()
        for name in ("logs", "samples"):
            (self._folder.path / name).rmdir()
        machine = metadata.collect()
        self._about = {
            "arms": {name: arm.settings() for name, arm in arms.items()},
            "command": ["commbench", "train", "ab", *request.words],
            "commbench_version": commbench.__version__,
            "machine_text": prepare.machine_text(machine),
            "started": timestamp(),
        }

    @property
    def title(self) -> str:
        return names([arm.settings() for arm in self._arms.values()])

    @property
    def about(self) -> dict[str, Any]:
        """What `ab.json` has."""
        return self._about

    @property
    def folder(self) -> Path:
        return self._folder.path

    @property
    def launches(self) -> list[Launched]:
        """The launches of the rounds that have both arms."""
        return self._launches[: len(self._launches) // 2 * 2]

    @property
    def outcome(self) -> ab.Outcome:
        return ab.compare(self.launches, self._calibration)

    def run(self) -> int:
        """Return the exit code. However it ends, what has been measured until then is written and printed.

        Raises what ranks refused.
        """
        interrupt_on_sigterm()
        steps, folder = self._arms[BASELINE].config.steps, self.folder
        self._console.note(f"{self.title}: {count(self._rounds, 'round')} of {count(steps, 'step')}, in {folder}")
        self._write("running")
        status, code = "failed", EXIT_FAILED
        refused: CommbenchError | None = None
        try:
            self._measure()
            status, code = "finished", EXIT_OK
        except _Stopped as stopped:
            code = stopped.args[0]
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
        except CommbenchError as error:  # by the ranks of a launch, or one that diverged
            refused = error
        finally:
            status = "interrupted" if code == EXIT_INTERRUPTED else status
            self._write(status)
        if code != EXIT_OK:
            kept = count(len(self.launches) // 2, "whole round")
            self._console.note(f"{status} at {self._doing}; {kept} of {self._rounds} kept in {folder}")
        if self.launches:
            self._print()
        if refused is not None:
            raise refused
        return code

    def _measure(self) -> None:
        self._calibration = self._launch(self._arms[BASELINE], -1)
        self._predicted, why = predicted(self._calibration, self._arms, self._model)
        said = f"nothing: {why}" if self._predicted is None else f"{self._predicted:.3f}x"
        self._console.note(f"predicted before the rounds: {said}")
        self._write("running")
        for number in range(self._rounds):
            for name in ARMS if number % 2 == 0 else ARMS[::-1]:
                found = self._launch(self._arms[name], number)
                self._launches.append(found)
                append_line(self._folder.path / "launches.jsonl", json.dumps(dataclasses.asdict(found)))
            last = {one.arm: one.tokens_per_s for one in self._launches[-2:]}
            self._console.note(f"round {number + 1} of {self._rounds}: {last[CANDIDATE] / last[BASELINE]:.3f}x")

    def _launch(self, arm: Arm, number: int) -> Launched:
        """One training from its beginning, in a run folder of its own. Raises `_Stopped`."""
        self._doing = f"{arm.name}, round {number + 1}" if number >= 0 else "the baseline's launch before the rounds"
        its = replace(self._request, words=arm.words, out=self._folder.path, quiet=True, format="none")
        ended = launch.once(its)
        if ended.asked or ended.code == EXIT_INTERRUPTED:
            raise _Stopped(EXIT_INTERRUPTED)
        if ended.code != EXIT_OK:
            raise _Stopped(EXIT_FAILED)
        tokens = arm.config.batch * arm.config.context
        return ab.launched(arm.name, number, results.steps(ended.folder), tokens, ended.folder.name)

    def _write(self, status: str) -> None:
        about: dict[str, Any] = {**self._about, "status": status, "updated": timestamp(), "predicted": self._predicted}
        if self._calibration is not None:
            about["calibration"] = dataclasses.asdict(self._calibration)
        if self.launches:
            outcome = self.outcome
            about |= {**dataclasses.asdict(outcome), "verdict": str(outcome.verdict)}
        self._about = about
        self._folder.write_json("ab.json", about)

    def _print(self) -> None:
        lines = table(self.outcome, self._predicted) if self._request.format == "table" else [json.dumps(self._about)]
        write("\n".join(lines))


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
            if not value:
                raise UsageError(f"{word!r} has no value", hint=f"{arm}=FILE, {arm}=default, or {arm}.KEY=VALUE")
            profile = "null" if value in _DEFAULT else value
            own[arm].append(f"{inner}={value}" if inner else f"profile={profile}")
        elif key == "rounds":
            rounds = _whole(value)
        elif key == "model":
            costs = Path(value)
        else:
            common.append(word)
    typed = {word.partition("=")[0] for word in common if "=" in word}
    for key in typed - {*training.keys()}:
        if not key.startswith("env."):
            raise unknown("key", key, [*training.keys(), *ARMS, "rounds", "model"])
    common += [word for word in _DEFAULTS if word.partition("=")[0] not in typed]
    arms = {}
    for name in ARMS:
        words = (*common, *own[name])
        config, env = training.compose(words)
        arms[name] = Arm(name=name, words=words, config=config, env=env)
    one, two = (arms[name].config for name in ARMS)
    if arms[BASELINE].settings() == arms[CANDIDATE].settings():
        profile = "no profile" if one.profile is None else one.profile
        raise UsageError(f"baseline and candidate are the same: {one.recipe} with {profile}",
                         hint="candidate=p.json, or candidate.KEY=VALUE")  # fmt: skip
    changed = two.changed(one)
    if one.path != two.path:  # a run that goes on may find its text elsewhere
        changed["path"] = two.path, one.path
    if changed:
        told = ", ".join(f"{key} ({there} and {here})" for key, (here, there) in changed.items())
        raise UsageError(f"the arms would train different models: {told}",
                         hint=f"arms may differ in what only changes time: profile, schedule, dispatch, ..; else "
                              f"{next(iter(changed))}=VALUE for both")  # fmt: skip
    if one.steps != two.steps:
        raise UsageError(f"the arms have {one.steps} and {two.steps} steps", hint="steps=N for both")
    ab.check_steps(one.steps)
    return arms, rounds, costs


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"rounds={text}", hint=f"a whole number; a claim of a gain takes {PAIRS_FOR_CLAIM}")
    return int(text)


def _model(path: Path, config: TrainConfig) -> Model:
    """As `commbench model --out` writes it. Raises `UsageError` where it is not of these ranks' links."""
    from commbench.cost_model import Model

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


def predicted(calibration: Launched, arms: Mapping[str, Arm], model: Model | None) -> tuple[float | None, str]:
    """The ratio, or why there is none."""
    one, two = (arms[name].settings() for name in ARMS)
    others = [key for key in {**one, **two} if one.get(key) != two.get(key) and key not in _EXCHANGES]
    if others:
        return None, f"it knows exchanges alone, and the arms differ in {', '.join(others)}"
    tables = [_table(arms[name].config) for name in ARMS]
    known = [found for found in tables if found is not None]
    expected = importlib.import_module(training.EXPECTED)
    try:
        times = [expected.exchanges_us(arms[name].config, own, known, model)
                 for name, own in zip(ARMS, tables, strict=True)]  # fmt: skip
    except UsageError as error:
        return None, f"{error}; {error.hint}"
    return ab.predicted(calibration, *times), "no time is spent in exchanges"


def _table(config: TrainConfig) -> Table | None:
    """Of the scope that the arm's ranks are started for; None without a profile, or where no one scope is theirs."""
    scope = launch.scope_of(config)
    if config.profile is None or scope is None:
        return None
    return Table(profile_file.load(Path(config.profile)), scope.id)


__all__ = ["Comparison", "arms_of", "create", "predicted"]
