"""Commands that say what there is, and whether it is right. Each loads what it needs when it runs."""

from __future__ import annotations

import os
import shutil
import sys

import click

from commbench.commands import completing
from commbench.commands.options import SHORT, WithKeys, table_format

_WIDEST = 100


def _width() -> int:
    return min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns)


def _say(text: str) -> int:
    sys.stdout.write(text)
    return 0


@click.command(short_help="Every KEY=VALUE setting: what it is, its default, what it may be.")
@click.argument("name", required=False, metavar="[NAME]", shell_complete=completing.keys)
def keys(name: str | None) -> int:
    """List the keys of all commands, or say all of one.

    \b
    commbench keys
    commbench keys sizes.max
    """
    from commbench.find import keys as found

    return _say(found.listed(_width()) if name is None else found.one(name, _width(), SHORT))


@click.command(short_help="What a column, a status, a verdict or a warning means.")
@click.argument("words", nargs=-1, metavar="[COLUMN|STATUS|WARNING]", shell_complete=completing.meanings)
def explain(words: tuple[str, ...]) -> int:
    """Say what a word in a table, in JSON or on stderr means, with its unit or formula; list all of them without one.

    \b
    commbench explain busbw
    commbench explain declaration_mismatch
    commbench explain 4 ranks share 2 CPUs
    """
    from commbench.find import meanings

    return _say(meanings.explained(" ".join(words), _width()) if words else meanings.listed(_width()))


@click.command(short_help="The recipes: what each is for, and what it needs.")
@click.argument("name", required=False, metavar="[NAME]", shell_complete=completing.recipes)
def recipes(name: str | None) -> int:
    """List the recipes of sweep, tune and train, or show one: its settings, its plan, about how long it takes.

    \b
    commbench recipes
    commbench recipes moe
    """
    from commbench.find import recipes as found

    return _say(found.listed(_width()) if name is None else found.one(name, _width()))


@click.command(
    cls=WithKeys, keys="commbench.find.layer", short_help="What a Mixture-of-Experts layer sends, and what to try."
)
@click.argument("words", nargs=-1, metavar="KEY=VALUE ...", shell_complete=completing.words_of("advise"))
@click.option("--format", "format_", type=click.Choice(("text", "json")), default="text", show_default=True,
              help="Of what is printed on stdout.")  # fmt: skip
def advise(words: tuple[str, ...], format_: str) -> int:
    """Say what a layer sends, which sizes to measure and what is likely best, with the lines to paste.

    \b
    commbench advise tokens=4096 model_dim=4096 top_k=2 experts=16 ep=8 nodes=2 layers=12
    """
    from commbench.find import advice, layer
    from commbench.machine import gpus

    shape, here = layer.read(words), gpus.count(os.environ) > 0
    return _say(advice.as_json(shape, gpus=here) if format_ == "json" else advice.text(shape, _width(), gpus=here))


@click.command(
    short_help="Does an algorithm give the right result, and send what it declares?",
    epilog="Exit codes: 0 proved, 1 it is wrong somewhere, 2 it is not an algorithm.",
)
@click.argument("algorithms", nargs=-1, required=True, metavar="FILE.py:CLASS|NAME...")
@click.option("--format", "format_", type=click.Choice(("text", "json")), default="text", show_default=True,
              help="Of what is printed on stdout; json: an algorithm a line.")  # fmt: skip
def prove(algorithms: tuple[str, ...], format_: str) -> int:
    """Run an algorithm on 13 layouts, and compare the result byte by byte and the messages one by one.

    Ranks are threads that hand each other real bytes, so it needs no GPU and no network, and takes a second. Data are
    delivered at the latest moment that is allowed: what a timed run shows now and then shows here always.

    \b
    commbench prove ./my.py:Mine
    commbench prove 2d_intra_first
    """
    from commbench.commands.prove import run

    return run(algorithms, format_)


@click.command(short_help="Numbers that papers published, beside what formulas say.")
@click.argument("figures", nargs=-1, metavar="[FIGURE...]")
@click.option("--gpus", default="", metavar="N,N..", help="Of Tutel's figures; default: 8 to 4096, by twos.")
@table_format(json_is="a figure a line")
def predict(figures: tuple[str, ...], gpus: str, format_: str) -> int:
    """Predict published speed-ups as bands, and say which of them are inside.

    Figures: tutel-layer, tutel-all-to-all, tutel-training, monta, parm, simumax; without one, all. A band holds 90 %
    of draws of what was not published; nothing is fitted to what was. docs/reference/papers.md has the formulas.

    \b
    commbench predict tutel-training --gpus 8,512
    """
    from commbench.commands.predict import run

    return run(figures, gpus, format_)


COMMANDS = (advise, keys, recipes, explain, prove, predict)
