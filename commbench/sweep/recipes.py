"""Recipes and Hydra: from a recipe's name and KEY=VALUE words to plain dictionaries of keys. Parent process only.

Hydra composes the config groups (once per choice); `KEY=VALUE` is its grammar. Value axes are expanded in `plan`,
without Hydra, so that a plan of ten thousand cases costs no ten thousand compositions.
"""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commbench.errors import UsageError, unknown
from commbench.layout import LISTED
from commbench.record import folder as trace_folder
from commbench.record import recipe as traced

_MOST_VALUES = 100_000  # of a range
_MOST_DIGITS = 300  # above, a number is no float either
_LISTED_GROUPS = tuple(f"groups={quote}{LISTED}" for quote in ("", "'", '"'))  # one value, with its commas


def root() -> Path:
    """Return the folder of recipes and config groups: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "sweeps", package.parent / "sweeps"):
        if (folder / "config.yaml").is_file():
            return folder
    raise UsageError(
        f"no recipes beside {package}", hint="the installation is incomplete: install commbench again, from a wheel"
    )


def groups() -> dict[str, list[str]]:
    """Return config groups and their options: {"recipe": ["alltoall", "quick"], "sizes": [...]}."""
    folders = sorted(path for path in root().iterdir() if path.is_dir())
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


@dataclass(slots=True)
class Overrides:
    """KEY=VALUE words, sorted out: group choices for Hydra, values for us, environment variables raw."""

    choices: dict[str, list[str]] = field(default_factory=dict)
    values: dict[str, list[Any]] = field(default_factory=dict)
    env: dict[str, list[str]] = field(default_factory=dict)


def parse_overrides(words: Sequence[str]) -> Overrides:
    """Sort out KEY=VALUE words. Raises `UsageError` for a word that is none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, RangeSweep, Sweep
    from hydra.errors import HydraException

    for word in words:
        _check_length(word)
    parser = OverridesParser.create()
    options = groups()
    result = Overrides()
    for word in words:
        if word.startswith("env."):
            name, value = _split_env(word)
            result.env[name] = value
            continue
        if word.startswith("cpu_masks="):  # as raw: neither its ; nor its , means anything to Hydra
            text = word.partition("=")[2].strip("'\"")
            result.values["cpu_masks"] = [None if text == "null" else text]
            continue
        if word.startswith(_LISTED_GROUPS):
            result.values["groups"] = [word.partition("=")[2].strip("'\"")]
            continue
        if word.startswith(("+", "~")):
            key = word.lstrip("+~").split("=")[0]
            raise UsageError(
                f"{word!r}: keys cannot be added or removed", hint=f"write {key}=VALUE; --show-config lists the keys"
            )
        if "=" not in word:
            raise UsageError(f"unexpected argument {word!r}", hint="settings are written KEY=VALUE, e.g. dtype=bf16")
        try:
            override = parser.parse_override(word)
            raw = override.value()
            if isinstance(raw, ChoiceSweep):
                value_list = [_plain(item) for item in raw.list]
            elif isinstance(raw, RangeSweep):
                value_list = list(itertools.islice(raw.range(), _MOST_VALUES + 1))
                if len(value_list) > _MOST_VALUES:
                    raise UsageError(f"{word!r}: more than {_MOST_VALUES} values", hint="a shorter range")
            elif isinstance(raw, Sweep):
                raise UsageError(f"{word!r}: this kind of sweep is not supported", hint="list the values: key=a,b,c")
            else:
                plain = _plain(raw)
                value_list = plain if isinstance(plain, list) else [plain]
        except (HydraException, ValueError, RecursionError) as error:
            raise UsageError(
                f"cannot read {textwrap.shorten(word, 80)!r}: {reason(error)}",
                hint="quote values with special signs: key='a=b'",
            ) from error
        key = override.key_or_group
        if key == "recipe":
            raise UsageError(f"{word!r}: the recipe is the first word", hint="commbench sweep RECIPE [KEY=VALUE ...]")
        if key in options:
            for choice in value_list:
                if choice not in options[key]:
                    raise unknown(key, str(choice), options[key])
            result.choices[key] = [str(choice) for choice in value_list]
        else:
            result.values[key] = value_list
    return result


def _check_length(word: str) -> None:
    """Raise `UsageError` for a number that nothing can mean; a variable may have any value."""
    digits = max((len(run) for run in re.findall(r"\d+", word)), default=0)
    if digits > _MOST_DIGITS and not word.startswith("env."):
        raise UsageError(f"{word[:40]}.. has a number of {digits} digits", hint="a number has 18 digits at most")


def reason(error: BaseException) -> str:
    """Return in one line why a recipe or a word cannot be read."""
    if isinstance(error, RecursionError):
        return "it nests too deeply, or refers to itself"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _plain(value: Any) -> Any:
    """Return Hydra's quoted strings and numbers as Python values; names such as 2d_intra_first stay strings."""
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _split_env(word: str) -> tuple[str, list[str]]:
    """Split env.NAME=a,b raw: values such as `^ib` are no Hydra grammar. Quotes keep a comma: env.NAME='a,b'."""
    name, separator, text = word.removeprefix("env.").partition("=")
    if not separator or not name.isidentifier():
        raise UsageError(f"cannot read {word!r}", hint="write env.NAME=value or env.NAME=a,b,c")
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return name, [text[1:-1]]
    return name, text.split(",")


def is_file(word: str) -> bool:
    """Return whether a word names a recipe file, whatever other signs are in it."""
    return word.endswith((".yaml", ".yml"))


def is_trace(word: str) -> bool:
    """Return whether a word names the folder of a trace, and no recipe of that name."""
    return trace_folder.is_trace(Path(word)) and word not in groups()["recipe"]


def compose(recipe: str, overrides: Overrides) -> list[dict[str, Any]]:
    """Return a dictionary of keys for each combination of group choices.

    recipe: a name, or the path of a YAML file or of a trace's folder.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        names = [recipe]
        if is_file(recipe) or is_trace(recipe):
            documents = _documents(recipe) if is_file(recipe) else _sent(recipe)
            # Under names of our own: a file may be called quick.yaml, or have signs in its name that Hydra would read.
            names = [f"_file_{number}" for number in range(len(documents))]
            for name, document in zip(names, documents, strict=True):
                ConfigStore.instance().store(group="recipe", name=name, node=document, package="_global_")
        elif recipe not in groups()["recipe"]:
            if Path(recipe).is_dir():
                trace_folder.read(Path(recipe))  # which says why it is no trace
            raise unknown("recipe", recipe, groups()["recipe"])
        GlobalHydra.instance().clear()
        configs = []
        with initialize_config_dir(str(root()), version_base="1.3", job_name="commbench"):
            for name, *chosen in itertools.product(names, *overrides.choices.values()):
                choices = [f"{key}={value}" for key, value in zip(overrides.choices, chosen, strict=True)]
                composed = hydra_compose("config", overrides=[f"recipe={name}", *choices])
                config = OmegaConf.to_container(composed, resolve=True)
                assert isinstance(config, dict)
                configs.append({str(key): value for key, value in config.items()})
        return configs
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        raise UsageError(
            f"recipe {recipe!r} does not compose: {reason(error)}", hint="compare it with sweeps/recipe/quick.yaml"
        ) from error


def _documents(name: str) -> list[dict[str, Any]]:
    """Return the YAML documents of a recipe file; a run over several group choices writes one for each."""
    import yaml

    try:
        documents = list(yaml.safe_load_all(Path(name).read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(
            f"no recipe file {name!r}: {error.strerror}", hint="give a path that exists, or the name of a recipe"
        ) from error
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise UsageError(f"recipe file {name!r} has no keys", hint="compare it with sweeps/recipe/quick.yaml")
    return documents


def _sent(name: str) -> list[dict[str, Any]]:
    """Return the recipe of a trace. Raises `UsageError` where a sweep can measure nothing of it."""
    trace = trace_folder.read(Path(name))
    sent = traced.sent_cases(trace)
    if not sent.cases:
        why = "; ".join(dict.fromkeys(sent.left_out)) or "no collective was recorded"
        raise UsageError(f"a sweep can measure nothing of the trace {name!r}", hint=why)
    return traced.documents(trace, sent.cases)
