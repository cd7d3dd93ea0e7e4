"""`commbench report`: what runs have found, as one page that opens anywhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from commbench.analysis.bounds import Told
from commbench.console import stderr_console
from commbench.errors import EXIT_OK, UsageError
from commbench.files import write_named
from commbench.links import parse_link_rates
from commbench.output.nameless import Hidden
from commbench.report import html, machines, markdown, read

_ENDINGS = {".html": "html", ".htm": "html", ".md": "markdown"}


def run(
    paths: Sequence[Path], out: Path | None, format_: str | None, *, anonymous: bool, ranks: int | None = None,
    nodes: int | None = None, link_rate: Sequence[str] = (),
) -> int:  # fmt: skip
    """Write the page; return 0. Raises `CommbenchError`."""
    format_ = format_ or (_ENDINGS.get(out.suffix.lower(), "html") if out else "markdown")
    if format_ == "html" and out is None:
        raise UsageError("a page of HTML goes into a file", hint="--out page.html; --format markdown prints")
    console = stderr_console()
    told = Told(ranks=ranks, nodes=nodes, rates=parse_link_rates(link_rate))
    made = read.reports(paths, told, lambda text: console.print(text, markup=False, highlight=False))
    if anonymous:
        hide = Hidden(machines.hosts(paths))
        made = [hide.value(one) for one in made]
    title = f"commbench: {made[0].name}" if len(made) == 1 else f"commbench: {len(made)} reports"
    text = (html if format_ == "html" else markdown).write(made, title)
    data = text.encode(errors="backslashreplace")
    if out is None:
        sys.stdout.write(data.decode())
        return EXIT_OK
    try:
        write_named(out, data)
    except OSError as error:
        raise UsageError(f"cannot write {str(out)!r}: {error.strerror}",
                         hint="--out FILE, in a folder of yours") from error  # fmt: skip
    if format_ == "html" and not html.vega():
        console.print("charts are left out: this checkout was never installed, and pip install makes what draws them")
    console.print(f"report: {out} ({len(data) / 1e6:.1f} MB)", markup=False, highlight=False)
    return EXIT_OK
