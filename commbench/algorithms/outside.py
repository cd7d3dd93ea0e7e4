"""Algorithms from outside of commbench: a class in a file of the user's, or an entry point of an installed package.

Code of a file is loaded only where the user names the file: as algorithm=./my.py:Name on the command line, by
--algorithms, or in COMMBENCH_ALGORITHMS. Recipes, run folders and profiles, which others may have written, name it and
never load it. An algorithm that is loaded stands in the table of algorithms, under its own name, beside ours.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import os
import re
import shlex
import sys
import traceback
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from commbench import algorithms, collectives
from commbench.algorithms.base import Algorithm
from commbench.errors import UsageError, said
from commbench.files import write_atomically
from commbench.serialise import from_dict
from commbench.variables import ALGORITHMS

GROUP = "commbench.algorithms"  # of entry points
FOLDER = "algorithms"  # of a run: its own copies of the files
_METHODS = ("unsupported", "steps", "scratch_bytes", "multiprocessors", "prepare")
_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,39}")
BETWEEN = ";"  # of several in the variable


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideAlgorithm:
    """Where an algorithm comes from, as ranks, run folders and profiles have it."""

    collective: str
    name: str
    file: str  # of its class, an absolute path
    object: str  # the class: Hypercube
    sha256: str  # of the file
    entry_point: str = ""  # the package and its version, if one installed it

    @property
    def word(self) -> str:
        """Return what the user types to load it."""
        return self.name if self.entry_point else f"{self.file}:{self.object}"

    @property
    def key(self) -> tuple[str, str]:
        return self.collective, self.name


_loaded: dict[tuple[str, str], OutsideAlgorithm] = {}
_sources: dict[str, bytes] = {}  # by their digest


def read(stored: Any) -> list[OutsideAlgorithm]:
    """Return what a run's or a job's JSON has of them. Raises `ValueError`, in words, where that is something else."""
    if not isinstance(stored, list | tuple):
        raise ValueError(f"`algorithms` is {stored!r}, not a list")
    return [from_dict(OutsideAlgorithm, one) for one in stored]


def is_file(word: str) -> bool:
    """Return whether a word names a file, and no algorithm of the table."""
    return word.endswith(".py") or ".py:" in word


def loaded(keys: Collection[tuple[str, str]] | None = None) -> list[OutsideAlgorithm]:
    """Return what was loaded so far; of `keys` (collective, name) alone if given."""
    return [outside for key, outside in _loaded.items() if keys is None or key in keys]


def forget() -> None:
    """Take what was loaded out of the table again."""
    for key in _loaded:
        del algorithms.TABLE[key]
    _loaded.clear()


def load(word: str) -> OutsideAlgorithm:
    """Load `./my.py:Hypercube`, or `./my.py` where one class of it is an algorithm. Raises `UsageError`."""
    name, _, wanted = word.rpartition(":") if not word.endswith(".py") else (word, "", "")
    path = Path(name).expanduser().absolute()
    data = _read(path, word)
    digest = hashlib.sha256(data).hexdigest()
    known = [one for one in _loaded.values() if one.sha256 == digest]  # a run's copy is the same as the user's file
    if known and (not wanted or wanted in [one.object for one in known]):
        return next(one for one in known if wanted in ("", one.object))
    module = _execute(path, data, digest)
    _sources[digest] = data
    cls = _class_of(module, wanted, word)
    return _register(cls, word, file=str(path), sha256=digest)


def find_installed(name: str) -> OutsideAlgorithm | None:
    """Load the entry point of this name, if a package has it. Raises `UsageError` where it cannot be used."""
    found = next(iter(importlib.metadata.entry_points(group=GROUP, name=name)), None)
    if found is None:
        return None
    known = next((one for one in _loaded.values() if one.name == name and one.entry_point), None)
    if known is not None:
        return known
    package = f"{found.dist.name} {found.dist.version}" if found.dist else "a package"
    word = f"the entry point {found.name} = {found.value} of {package}"
    try:
        cls = found.load()
        file = inspect.getsourcefile(cls) or ""
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except Exception as error:
        raise UsageError(f"{word} does not load: {said(error)}", hint="repair the package, or uninstall it") from error
    outside = _register(cls, word, file=file, sha256=digest, entry_point=package)
    if outside.name != name:
        del algorithms.TABLE[outside.key], _loaded[outside.key]
        raise UsageError(f"{word} calls itself {outside.name!r}", hint="give the entry point the algorithm's own name")
    return outside


def provide(wanted: OutsideAlgorithm) -> None:
    """Load what a launch's job names, in a rank. Raises `UsageError` where it is another file than the parent's."""
    here = _loaded.get(wanted.key)  # of a process that was forked
    if here is not None and here.sha256 == wanted.sha256:
        return
    if wanted.entry_point:
        here = find_installed(wanted.name)
        if here is None:
            raise UsageError(
                f"no package here has the entry point {wanted.name}, which is of {wanted.entry_point}",
                hint="install it on every host",
            )
    else:
        here = load(wanted.word)
    if here.sha256 != wanted.sha256:
        raise UsageError(
            f"{here.file} is not the file that was measured before ({_digests(here, wanted)})",
            hint="give all hosts and ranks the same file",
        )


def require(wanted: Iterable[OutsideAlgorithm], whose: str) -> None:
    """Raise `UsageError` where `whose` (a profile, a run) needs algorithms that the user has not loaded, or others.

    What an installed package has is loaded.
    """
    of_environment()
    for one in wanted:
        here = _loaded.get(one.key)
        if here is None and one.entry_point:
            here = find_installed(one.name)
            if here is None:
                raise UsageError(
                    f"{whose} uses the algorithm {one.name} of {one.entry_point}, which is not installed here",
                    hint=f"install the package that has it: {one.entry_point}",
                )
        if here is None:
            there = "" if Path(one.file).is_file() else "; there is no such file here: say where yours is"
            raise UsageError(
                f"{whose} uses the algorithm {one.name} of {one.file}, and names no code to load by itself{there}",
                hint=f"if you trust that file: --algorithms {shlex.quote(one.word)}",
            )
        if here.sha256 != one.sha256:
            raise UsageError(
                f"{whose} was made with another {one.name} than {here.file} has ({_digests(here, one)})",
                hint="give it the file as it was then, or measure and tune again with this one",
            )


def of_environment() -> list[OutsideAlgorithm]:
    """Load what the user has named in COMMBENCH_ALGORITHMS. Raises `UsageError`."""
    return [load(word) for word in os.environ.get(ALGORITHMS, "").split(BETWEEN) if word]


def hand_on(words: Iterable[str]) -> None:
    """Load what --algorithms names, and name it to the processes that this one starts. Raises `UsageError`."""
    mine = [load(word).word for word in words]
    if odd := [word for word in mine if BETWEEN in word]:
        raise UsageError(f"{odd[0]!r} has a {BETWEEN!r} in its path", hint="put the file in another folder")
    before = [word for word in os.environ.get(ALGORITHMS, "").split(BETWEEN) if word]
    if mine:
        os.environ[ALGORITHMS] = BETWEEN.join(dict.fromkeys([*before, *mine]))


def for_ranks(folder: Path, keys: Collection[tuple[str, str]]) -> tuple[dict[str, str], ...]:
    """Return what a launch's job says of those of `keys`, whose files are copied into the run's folder.

    A run goes on as it began, whatever becomes of the user's files.
    """
    kept = []
    for one in loaded(keys):
        if not one.entry_point:
            source, target = _sources[one.sha256], folder / FOLDER / f"{one.name}-{one.sha256[:8]}.py"
            target.parent.mkdir(exist_ok=True)
            if not target.is_file() or target.read_bytes() != source:
                write_atomically(target, source)
            one = replace(one, file=str(target))
        kept.append(asdict(one))
    return tuple(kept)


def _digests(here: OutsideAlgorithm, there: OutsideAlgorithm) -> str:
    return f"sha256 {here.sha256[:12]} here, {there.sha256[:12]} there"


def _read(path: Path, word: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read the algorithm {word!r}: {error.strerror}", hint="algorithm=./FILE.py:CLASS"
        ) from error


class _Loader(importlib.abc.SourceLoader):
    """Loads the bytes that were read, and no others: the digest is that of the code that runs."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path, self._data = path, data

    def get_filename(self, fullname: str) -> str:
        return str(self._path)

    def get_data(self, path: str | bytes) -> bytes:
        return self._data


def _execute(path: Path, data: bytes, digest: str) -> ModuleType:
    name = f"commbench_outside_{digest[:16]}"
    loader = _Loader(path, data)
    spec = importlib.machinery.ModuleSpec(name, loader, origin=str(path))
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    try:
        loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        raise UsageError(
            f"{path} does not load: {said(error)}{f', in line {line}' if line else ''}", hint="repair the file"
        ) from error
    return module


def _class_of(module: ModuleType, wanted: str, word: str) -> Any:
    """Return the class that is meant."""
    mine = {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and hasattr(value, "collective")
    }
    if wanted:
        value = getattr(module, wanted, None)
        if value is None:
            raise UsageError(f"{word}: there is no {wanted}", hint=f"it has: {', '.join(mine) or 'no algorithm'}")
        return value
    if len(mine) != 1:
        raise UsageError(
            f"{word} has {len(mine)} algorithms{': ' if mine else ''}{', '.join(mine)}",
            hint=f"say which one: {word}:CLASS, a class with a name, a collective, steps and prepare",
        )
    return next(iter(mine.values()))


def _register(cls: Any, word: str, **where: str) -> OutsideAlgorithm:
    """Put an instance into the table. Raises `UsageError` where it breaks the contract of algorithms."""
    try:
        algorithm: Any = cls() if inspect.isclass(cls) else cls
    except Exception as error:
        raise UsageError(
            f"{word} cannot be made: {said(error)}", hint="its class takes no arguments: parameters are `params`"
        ) from error
    if reason := broken(algorithm):
        raise UsageError(
            f"{word} is not an algorithm: {reason}", hint="see docs/guide/own-algorithm.md, 'The contract'"
        )
    outside = OutsideAlgorithm(
        collective=algorithm.collective, name=algorithm.name, object=type(algorithm).__name__, **where
    )
    other = _loaded.get(outside.key)
    if other is None and outside.key in algorithms.TABLE:
        raise UsageError(f"{word} is called {outside.name!r}, as one of commbench is", hint="give it another name")
    if other is not None and other.file != outside.file:
        raise UsageError(f"{word} and {other.word} are both called {outside.name!r}", hint="give one another name")
    algorithms.TABLE[outside.key] = algorithm
    _loaded[outside.key] = outside
    return outside


def broken(algorithm: Algorithm) -> str:
    """Return in words how an object breaks the contract, as far as can be seen without running it; "" if not."""
    for name in _METHODS:
        if not callable(getattr(algorithm, name, None)):
            return f"it has no method {name}; derive it from commbench.algorithms.base.AlgorithmBase"
    for name in ("name", "collective"):
        if not isinstance(getattr(algorithm, name, None), str):
            return f"its {name} is {getattr(algorithm, name, None)!r}, not a word"
    if not _NAME.fullmatch(algorithm.name) or algorithm.name == "all":
        return f"its name {algorithm.name!r} is not 1 to 40 small letters, digits and _, or is `all`"
    if algorithm.collective not in collectives.TABLE:
        return f"its collective {algorithm.collective!r} is none of {', '.join(collectives.TABLE)}"
    return _broken_tables(algorithm)


def _broken_tables(algorithm: Algorithm) -> str:
    for name in ("params", "tries", "demands"):
        if not isinstance(getattr(algorithm, name, None), dict):
            return f"its {name} is {getattr(algorithm, name, None)!r}, not a dictionary"
    for name in ("concurrent", "one_sided"):
        if not isinstance(getattr(algorithm, name, None), bool):
            return f"its {name} is {getattr(algorithm, name, None)!r}, not True or False"
    for key, value in algorithm.params.items():
        good = isinstance(value, tuple) and len(value) == 2 and type(value[0]) is int and isinstance(value[1], str)
        if not (good and key.isidentifier()):
            return f"its parameter {key!r} is {value!r}, not (default, what it means)"
    if odd := [key for key in algorithm.tries if key not in algorithm.params]:
        return f"its tries name {odd[0]!r}, which is none of its params"
    arguments = collectives.get(algorithm.collective).arguments
    if odd := [key for key in algorithm.demands if key not in arguments]:
        return f"its demands name {odd[0]!r}, which is not an argument of {algorithm.collective}"
    return ""
