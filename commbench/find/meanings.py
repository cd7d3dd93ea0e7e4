"""What words in tables, JSON and on stderr mean: columns, statuses, stop reasons, verdicts, warnings.

docs/reference/metrics.md defines the same at length, and is tested against this table.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import NamedTuple

from commbench.find.words import unknown_name

_METRICS = "docs/reference/metrics.md"
# Sections of that page.
_SIZE, _SAMPLE, _ROW, _BUSBW, _BOUND = "Size", "A sample", "A row", "Bus bandwidth", "Bound"
_TUNING, _STRAGGLERS, _WORDS = "Tuning", "Stragglers", "Words of a row"
COLUMN, STATUS, STOP, VERDICT, FABRIC, WARNING = "column", "status", "stop reason", "verdict", "fabric", "warning"
TUNED, NAMED = "column of commbench tune", "column of commbench stragglers"
KINDS = (COLUMN, STATUS, STOP, VERDICT, FABRIC, WARNING, TUNED, NAMED)


class Meaning(NamedTuple):
    """What one word means. unit: of a number, or its formula. also: its headings in the table for people."""

    kind: str
    name: str
    text: str
    unit: str = ""
    section: str = _WORDS
    also: tuple[str, ...] = ()


def _column(name: str, text: str, unit: str = "", section: str = _ROW, *also: str) -> Meaning:
    return Meaning(COLUMN, name, text, unit, section, also)


# fmt: off
_COLUMNS = (
    _column("case_id", "id of the case: the same for the same measurement, whenever and wherever it is made", "",
            _WORDS),
    _column("status", "how the case ended; only ok has numbers", "", _WORDS),
    _column("reason", "why it did not end well, in words"),
    _column("collective", "what was done", "", _WORDS),
    _column("arguments", "what the collective was asked beside its size, as op of all_reduce", "", _WORDS),
    _column("in_place", "whether input and output share a buffer", "", _WORDS),
    _column("algorithm", "how it was done; direct is the library's own call", "", _WORDS),
    _column("params", "parameters of the algorithm, as window of pairwise", "", _WORDS),
    _column("transport", "what carries the messages: gloo, mpi, nccl, scripted", "", _WORDS),
    _column("mode", "what one sample is: a call, calls back to back, or a CUDA graph of calls", "", _WORDS),
    _column("buffers", "kind of memory: plain, registered with NCCL, symmetric", "", _WORDS),
    _column("cache", "warm: the buffers of the call before; cold: buffers rotate past the last-level cache", "",
            _WORDS),
    _column("dtype", "type of the elements", "", _WORDS),
    _column("size_bytes", "the larger of the bytes that one rank sends and receives, its own block included: "
            "nccl-tests' "
            "size; OSU's size x ranks", "bytes", _SIZE, "size"),
    _column("ranks", "ranks of the launch, all nodes together"),
    _column("nodes", "nodes of the layout; fabric says what they are", "", _WORDS),
    _column("groups", "which ranks do the collective at the same time", "", _WORDS),
    _column("group_size", "ranks of one group", "", _SIZE),
    _column("overlap", "what was computed beside the collective", "", _WORDS),
    _column("fabric", "what is between the nodes"),
    _column("link", "emulated: rate of a node's link to each spine"),
    _column("message_overhead", "emulated: what each packet is charged above its own bytes", "bytes"),
    _column("spines", "emulated: switches between the nodes"),
    _column("routing", "emulated: how traffic chooses a spine"),
    _column("intra_link", "emulated: rate inside a node"),
    _column("spine_rate", "emulated: rate of each leaf's link to the spine, where there are rails"),
    _column("slow_link", "emulated: the defect that was asked for"),
    _column("env", "variables that were set for the ranks", "", _WORDS),
    _column("binding", "which CPUs and memory ranks were to have"),
    _column("cpu_masks", "binding=explicit: the CPUs of each rank"),
    _column("binding_memory", "whether memory was bound too"),
    _column("rank_cpus", "the CPUs that ranks could use, read back from the kernel"),
    _column("rank_memory", "the NUMA nodes to which their memory was bound, read back; -: to none"),
    _column("launches", "fresh process groups that measured the case"),
    _column("samples", "samples of all launches together, warm-ups excluded"),
    _column("checked_calls", "calls whose output was compared since the first timed call"),
    _column("time_us", "the slowest rank's time of a typical call",
            "us; median over launches of (median over samples of (max over ranks))", _ROW, "time"),
    _column("time_us_low", "lower end of the 95 % interval of time_us; interval_of says of what", "us", _ROW,
            "[low-high]", "interval", "low"),
    _column("time_us_high", "upper end of the 95 % interval of time_us", "us", _ROW, "[low-high]",
            "interval", "high"),
    _column("interval_of", "what was resampled for the interval: launches (6 or more), or samples; then the spread "
            "between "
            "launches is not in it"),
    _column("time_us_mean", "the mean rank's time: compare it with nccl-tests -a 1 and IMB's t_avg",
            "us; median over launches of (median over samples of (mean over ranks))"),
    _column("time_us_p95", "the time that 95 % of the samples stay below",
            "us; median over launches; null below 20 samples"),
    _column("host_us", "time that the calling thread spends to start a call; on a CPU with all steps but the last",
            "us; median of the max over ranks"),
    _column("skew_us", "time between the first and the last rank leaving the barrier; it is part of an isolated "
            "time", "us"),
    _column("calls_per_sample", "calls that a sample is divided by; 1 in isolated"),
    _column("algbw_gbps", "size over time", "GB/s (1e9); size_bytes / time_us", _ROW, "algbw"),
    _column("busbw_gbps", "algbw made comparable with a link's rate, whatever the number of ranks",
            "GB/s (1e9); algbw x factor; all_to_all: (n - 1) / n", _BUSBW, "busbw"),
    _column("bound_gbps", "the busbw that the links allow at most; null where no rate is known", "GB/s (1e9)",
            _BOUND, "bound"),
    _column("bound_fraction", "how near busbw comes to the bound", "busbw_gbps / bound_gbps", _BOUND, "of_bound"),
    _column("bound_us", "the least time that known links allow the collective", "us", _BOUND),
    _column("bound_kind", "who says the links' rates: nominal the machine, declared the user (or an emulated network), "
            "measured this suite", "", _BOUND),
    _column("steps_us", "the least time that they allow this algorithm's own messages", "us", _BOUND),
    _column("mean_bytes", "all_to_allv: mean over ranks of the bytes sent; size_bytes is the busiest rank's", "bytes"),
    _column("busbw_mean_gbps", "busbw computed from mean_bytes", "GB/s (1e9)", _ROW, "of_mean"),
    _column("comm_alone_us", "with overlap: the call alone", "us; median of the max over ranks"),
    _column("compute_alone_us", "with overlap: the matrix product alone", "us; median of the max over ranks"),
    _column("compute_beside_us", "with overlap: the product while the call runs", "us; median of the max over ranks"),
    _column("comm_slowdown", "how much longer both take than the longer of the two: 1 is perfect",
            "time of both / max(call alone, product alone)", _ROW, "comm_x"),
    _column("compute_slowdown", "how much longer the product takes beside the call", "beside / alone", _ROW,
            "compute_x"),
    _column("overlap_percent", "part of the call that is hidden behind the product: OSU's definition",
            "100 - (both - product alone) / call alone x 100", _ROW, "overlap"),
    _column("inter_bytes", "payload of a call between nodes, all ranks together, as the algorithm declares it",
            "bytes", _ROW,
            "inter"),
    _column("intra_bytes", "payload of a call inside nodes, own blocks excluded", "bytes", _ROW, "intra"),
    _column("payload_bytes", "with payload: size_bytes as it travels, scales included; null where elements travel as "
            "they are", "bytes", _ROW, "payload"),
    _column("payload_error", "with payload: how far off a value may be that arrives, by the largest of its block",
            "|received - sent| / largest magnitude of the block", _ROW, "error"),
    _column("rows_choice", "dispatch, combine: rows a token, one for each choice", "mean over tokens"),
    _column("rows_rank", "one for each rank that has an expert of it, the own rank included", "mean over tokens"),
    _column("rows_node", "one for each node that has one, the own node included", "mean over tokens"),
    _column("skew", "rows of the rank that most choices go to; 1 is even", "busiest / mean"),
    _column("tokens_per_s", "tokens of all ranks that are dispatched, or combined, a second", "tokens / s", _ROW,
            "tokens/s"),
    _column("logical_rank_gbps", "as DeepEP counts inside of nodes: a row for each (token, rank), own rank included, "
            "of the busiest rank", "GB/s (1e9)", _ROW, "logical"),
    _column("logical_node_gbps", "as DeepEP counts between nodes: a row for each (token, node), own node included, of "
            "the busiest sender", "GB/s (1e9)"),
    _column("wire_inter_gbps", "what the busiest direction of a node's network carries of the declared messages",
            "GB/s (1e9)"),
    _column("wire_intra_gbps", "what the busiest direction of a rank carries inside its node", "GB/s (1e9)"),
    _column("spine_bytes", "emulated, with rails: bytes of a call that leaves sent to the spine, by its counters"),
    _column("wire_bytes", "emulated: bytes of a call that left all nodes, by the interfaces' counters, headers "
            "included",
            "bytes"),
    _column("link_imbalance", "emulated: bytes of the busiest direction of a link; 1 is even", "busiest / mean"),
    _column("cpu_percent", "how busy the CPUs were that ranks may use, whoever used them", "%", _ROW, "cpu"),
    _column("preempted", "samples in which some rank was switched out against its will"),
    _column("load_average", "load of the host in the last minute, after the samples"),
    _column("scratch_bytes", "memory that the algorithm needs beside input and output", "bytes per rank"),
    _column("wrong", "elements with a wrong value, all ranks together; then there are no numbers"),
    _column("stop_reason", "what ended the sampling, the worst of the launches", "", _ROW, "stop"),
    _column("baseline", "what speedup compares with: the collective's default algorithm"),
    _column("speedup", "above 1 this algorithm is faster than the baseline",
            "median over launches of baseline's time / own time", _ROW, "vs_direct"),
    _column("speedup_low", "lower end of the 95 % interval of speedup", "", _ROW, "[x_low-x_high]",
            "x_interval", "x_low"),
    _column("speedup_high", "upper end of the 95 % interval of speedup", "", _ROW, "[x_low-x_high]",
            "x_interval", "x_high"),
    _column("speedup_of", "what was resampled for that interval: launches, or samples"),
    _column("pairs", "launches whose process group measured both"),
    _column("speedup_p", "chance of such a ratio where nothing differs, adjusted for all ratios of the run; null "
            "below 6 "
            "pairs", "two-sided p"),
)
_STATUSES = (
    Meaning(STATUS, "ok", "measured, and every result that was compared was right"),
    Meaning(STATUS, "skipped", "it cannot run here; the reason says why"),
    Meaning(STATUS, "wrong_result", "an element had a wrong value: no numbers, as a wrong call's time means nothing"),
    Meaning(STATUS, "declaration_mismatch", "the result is right, but other messages were sent than the algorithm "
            "declares"),
    Meaning(STATUS, "out_of_memory", "there was no memory for its buffers"),
    Meaning(STATUS, "timeout", "no progress for timeout= seconds; logs/ say where the ranks were"),
    Meaning(STATUS, "error", "a rank failed; the reason has its last line"),
    Meaning(STATUS, "interrupted", "the run was stopped while it was measured: commbench sweep --resume RUN"),
)
_STOPS = (
    Meaning(STOP, "iters", "a fixed number of samples was asked for"),
    Meaning(STOP, "precision", "the median's interval within the launch is as narrow as precision= asks"),
    Meaning(STOP, "samples", "samples.max are there"),
    Meaning(STOP, "cap", "the seconds of cap= are spent; the interval is wider than asked: cap=10"),
)
_VERDICTS = (
    Meaning(VERDICT, "faster", "the interval of the ratio is above 1, and chance does not explain it"),
    Meaning(VERDICT, "slower", "the interval of the ratio is below 1, and chance does not explain it"),
    Meaning(VERDICT, "no difference", "the interval contains 1, or it could be chance; the table shows =", "",
            _WORDS, ("=",)),
    Meaning(VERDICT, "not estimable", "there are too few launches, 6 are needed: launches=6; the table shows ?", "",
            _WORDS,
            ("?",)),
    Meaning(VERDICT, "confirmed", "faster by a gain that counts, in 10 pairs or more, tested: only tune says so"),
)
_FABRICS = (
    Meaning(FABRIC, "none", "there is one node"),
    Meaning(FABRIC, "declared", "one machine stands for several nodes: no message leaves it"),
    Meaning(FABRIC, "real", "each node is a machine of its own"),
    Meaning(FABRIC, "virtual", "NCCL takes one machine for several, and uses its network transport inside it"),
    Meaning(FABRIC, "emulated", "shaped links between network namespaces of one machine"),
)
# Named by words that stand in their texts.
_WARNINGS = (
    Meaning(WARNING, "ranks share", "more ranks than CPUs: a rank waits until a CPU is free, and that is in the "
            "times. Use "
            "ranks_per_node=cpus, or trust ratios alone", "", _SAMPLE),
    Meaning(WARNING, "samples were preempted", "the kernel gave a rank's CPU to somebody else during a sample. Stop "
            "other "
            "programs, or use fewer ranks", "preempted / samples, from 5 % on", _ROW),
    Meaning(WARNING, "leave the barrier up to", "ranks do not begin together, and the early ones wait inside the call. "
            "mode=pipelined pays that once in many calls", "skew_us / time_us, from 20 % on", _SAMPLE),
    Meaning(WARNING, "above what the link rate allows", "more than the bound: its rate is too low (cards that were not "
            "counted, faster links between the nodes), or the number of nodes is wrong",
            "bound_fraction above 1.02", _BOUND),
    Meaning(WARNING, "nothing here is about your network", "nodes are declared on one machine: times are those of "
            "its memory. "
            "fabric=emulated has links; --launcher slurm or mpiexec has real nodes", "", _ROW),
    Meaning(WARNING, "% busy in", "on an emulated network the CPUs decided, not the links. Use fewer ranks or slower "
            "links",
            "cpu_percent above 90", _ROW),
    Meaning(WARNING, "timed calls were compared", "to compare every result would have taken over a third of the "
            "time, so a "
            "random part was", "checked_calls / samples", _SAMPLE),
    Meaning(WARNING, "left out:", "something cannot run here, and the run goes on without it; the words after it say "
            "why. "
            "commbench doctor says what to install", "", _WORDS),
)
_TUNED = (
    Meaning(TUNED, "default_us", "time of the default", "us; median over launches", _TUNING),
    Meaning(TUNED, "chosen_us", "time of the choice", "us; median over launches", _TUNING),
    Meaning(TUNED, "ratio", "above 1 the choice is faster", "default / chosen, Hodges-Lehmann over launches",
            _TUNING, ("gain",)),
    Meaning(TUNED, "low", "lower end of the 95 % interval of ratio; above 1 + gain it is confirmed", "", _TUNING),
    Meaning(TUNED, "high", "upper end of the 95 % interval of ratio", "", _TUNING),
    Meaning(TUNED, "pairs", "launches that measured both", "", _TUNING),
    Meaning(TUNED, "p", "chance of such a ratio without a gain, adjusted for all claims and looks", "one-sided p",
            _TUNING),
    Meaning(TUNED, "apparent", "ratio of the default against itself: what noise alone shows", "", _TUNING),
)
_NAMED = (
    Meaning(NAMED, "suspect", "a rank, a link, a node or a way between two nodes that may be slow", "", _STRAGGLERS),
    Meaning(NAMED, "ratio", "how many times slower it is than its like", "time / usual time, median over launches",
            _STRAGGLERS),
    Meaning(NAMED, "chance", "probability that a healthy system shows anything like it", "at most 5 % for a name",
            _STRAGGLERS),
    Meaning(NAMED, "slowest_share", "part of the samples in which the rank was the slowest", "", _STRAGGLERS),
)
# fmt: on
TABLE: tuple[Meaning, ...] = (*_COLUMNS, *_STATUSES, *_STOPS, *_VERDICTS, *_FABRICS, *_WARNINGS, *_TUNED, *_NAMED)


def names() -> list[str]:
    """Return every word that can be explained, each once, headings of tables included."""
    return list(dict.fromkeys(name for one in TABLE for name in (one.name, *one.also)))


def find(text: str) -> list[Meaning]:
    """Return what a word, or a warning or a part of one, means. Raises `UsageError` for an unknown one."""
    wanted = " ".join(text.lower().split())
    wanted = "vs_direct" if wanted.startswith("vs_") else wanted  # the baseline's name follows
    exact = [one for one in TABLE if wanted in (one.name, *one.also)]
    said = [one for one in TABLE if one.kind == WARNING and (one.name in wanted or (wanted and wanted in one.name))]
    if not (found := exact or said):
        raise unknown_name("word", text, names(), "commbench explain")
    return found


def explained(text: str, width: int) -> str:
    """Return the meanings of a word for people, in lines of `width` letters."""
    return "\n".join(_full(one, width) for one in find(text))


def _full(one: Meaning, width: int) -> str:
    lines = [f"{one.name}: {one.kind}{f', {one.also[0]} in the table' if one.also else ''}"]
    for text in (one.text, one.unit, f"{_METRICS}, {one.section}"):
        lines += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ") if text else []
    return "\n".join(lines) + "\n"


def listed(width: int) -> str:
    """Return all words by kind."""
    lines = ["commbench explain WORD says what it means. Of a warning, type any part of it."]
    for kind in KINDS:
        mine = [name for one in TABLE if one.kind == kind for name in (one.name, *one.also)]
        lines += ["", f"{kind}:", *_joined(mine, width)]
    return "\n".join(lines) + "\n"


def _joined(names: Iterable[str], width: int) -> list[str]:
    text = ", ".join(name.replace(" ", "\0") for name in names)
    lines = textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]
