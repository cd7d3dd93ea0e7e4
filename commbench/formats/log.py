"""What was read from a file of another program, and its lines as that program wrote them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from commbench.errors import UsageError
from commbench.formats.result import Result

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
# Lines that only a benchmark writes: what stands before their `#` is a launcher's.
_KNOWN = re.compile(
    r"\\?#\s*(?:Collective test starting:|nThreads?:? \d|Using devices|Rank\s+\d+\s|size\s+count\s+type\s"
    r"|OSU \w|Datatype:|Size\s|Benchmarking\s+\w|\(?\s*#processes\s+=\s+\d|#bytes\s)"
)
# The same where a page has taken `#` for a heading: it stands only before lines that have it in the program's text.
_EATEN = re.compile(
    r"^[ \t]*(?=nThreads?:? \d+ nGpus|Using devices|Rank\s+\d+\s+(?:Group|Pid)\s|(?:out-of|in)-place\b"
    r"|size\s+count\s+type\s|\(B\)|Out of bounds values|Avg bus bandwidth|Collective test"
    r"|OSU MPI|Datatype: MPI|Size\s+\S+ Latency)",
    re.MULTILINE,
)
_SHOWN = 3  # lines that a note names


@dataclass
class Log:
    """Results of a file, in its order, and lines that look like results and are none."""

    results: list[Result] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)  # which line it is, and why

    @property
    def note(self) -> str:
        """Say in one line how many lines were passed over, and why the first ones; "" where none was."""
        if not self.passed_over:
            return ""
        count = len(self.passed_over)
        more = f"; and {count - _SHOWN} more" if count > _SHOWN else ""
        return f"passed over {count} line{'s'[: count > 1]}: {'; '.join(self.passed_over[:_SHOWN])}{more}"

    def require_results(self, hint: str) -> None:
        """Raise `UsageError` where there are lines that look like results, and all of them are none."""
        if self.passed_over and not self.results:
            raise UsageError(self.passed_over[0], hint=hint)


def with_signs(text: str) -> str:
    """Return the text with the `#` that a page has eaten, where no line has kept its own."""
    return text if _KNOWN.search(text) else _EATEN.sub("# ", text)


def lines_of(text: str) -> list[str]:
    r"""Return the lines as the program wrote them: no colours, no `\#` of forums, nothing that a launcher put first.

    Whatever the launcher, what it puts first is learned from lines that are known: a pod, a container, a rank, a time.
    Numbers in it may be others on other lines.
    """
    lines = _COLOUR.sub("", text).splitlines()
    known = [(line, match.start()) for line in lines if (match := _KNOWN.search(line))]
    if any(line[start] == "\\" for line, start in known):
        lines = [re.sub(r"\\([^A-Za-z0-9\s])", r"\1", line) for line in lines]
    prefixes = {_any_numbers(line[:start]) for line, start in known if start}
    if not prefixes:
        return lines
    # The longest first: of `0: ` and `host: 0: ` both may be there.
    prefix = re.compile("|".join(sorted(prefixes, key=len, reverse=True)))
    return [line[match.end() :] if (match := prefix.match(line)) else line for line in lines]


def _any_numbers(prefix: str) -> str:
    """Return a pattern of this prefix with whatever numbers; a blank at its end may be missing."""
    words = re.split(r"(\d+| +)", prefix.rstrip(" "))
    pattern = "".join(r"\d+" if word.isdigit() else " +" if word.isspace() else re.escape(word) for word in words)
    return pattern + "[ ]?" * (len(prefix) - len(prefix.rstrip(" ")))
