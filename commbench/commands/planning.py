"""The command that looks ahead: which parallel strategy. It loads what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from commbench.commands import completing
from commbench.commands.options import WithKeys, check_picture, columns_option, table_format


@click.command(
    cls=WithKeys,
    keys="commbench.strategy.keys",
    short_help="Which parallel strategy is fastest, by how much, how sure.",
    epilog="Exit codes: 0 there is an answer, 2 usage, or a model that fits nowhere.",
)
@click.argument("words", nargs=-1, metavar="[MODEL] [KEY=VALUE ...]", shell_complete=completing.words_of("plan"))
@click.option("--top", type=click.IntRange(1), metavar="N", help="How many strategies are printed; of a table 10.")
@click.option("--emit", "emitted", default="", metavar="TRAINER,..",
              help="The best one in words of commbench, megatron, torchtitan.")  # fmt: skip
@click.option("--extrapolate", is_flag=True, help="Plan for more than 8 times the GPUs that costs were measured on.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE",
              help="Draw where time and memory go, and how the choice moves: .png or .svg.")  # fmt: skip
@click.option(
    "--validate", is_flag=True, help="Train those that are as good, as long as budget=10m, and say the regret."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True, metavar="DIR",
              help="Of --validate: parent of its run folders.")  # fmt: skip
@table_format(json_is="a strategy a line, best first, then the answer")
@columns_option
def plan(words: tuple[str, ...], **options: Any) -> int:
    """Rank how a model may be spread over a cluster: memory, time of a step with its interval, what binds.

    MODEL is a recipe (qwen3-30b-a3b, table1-scaled), a Hugging Face config.json or its folder, or left out: keys say
    its sizes. The formulas are in docs/reference/planner.md.

    \b
    commbench plan qwen3-30b-a3b gpu=h100 nodes=2 inter_gbs=400
    commbench plan table1-scaled cluster=cluster.yaml --format json
    commbench plan config.json cluster=cluster.yaml costs=costs.json current=tp4,ep8 --emit megatron
    """
    from commbench.commands.plan import run

    check_picture(options["plot"])
    return run(words, **options)


COMMANDS = (plan,)
