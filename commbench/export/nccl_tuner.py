"""`nccl-tuner`: rows for NVIDIA's example tuner plugin, which steers NCCL's own collectives and never all-to-all.

By plugins/tuner/example/plugin.c of NCCL 2.30.7. It takes an unknown collective for allreduce, an unknown algorithm
for ring and an unknown protocol for simple, without a word; and a call that matches no row gets one channel. So a row
is written only where the scope's environment says all of algorithm, protocol and channels, and then for any size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from commbench.export.source import Exported, ExportSource, comment, lines, settings, unbound
from commbench.profile import Scope

# What the plugin calls a collective, and NCCL's algorithms that exist for it (src/graph/tuning.cc).
_SOME = ("ring", "collnet_direct", "nvls", "pat")
_STEERED = {
    "broadcast": ("broadcast", ("ring",)),
    "all_gather": ("allgather", _SOME),
    "reduce_scatter": ("reducescatter", _SOME),
    "all_reduce": ("allreduce", ("tree", "ring", "collnet_direct", "collnet_chain", "nvls", "nvls_tree")),
}
_ALGORITHMS = ("tree", "ring", "collnet_direct", "collnet_chain", "nvls", "nvls_tree", "pat")
_PROTOCOLS = ("ll", "ll128", "simple")
_OWN = "direct"  # our algorithm that is one call of NCCL's collective
_ANY_SIZE = (0, 2**63 - 1)  # 4 GiB, as in the plugin's own example, would end the range
_ANY = -1


def write(source: ExportSource) -> Exported:
    scope = source.scope
    head = source.heading("Rows for NCCL's example tuner plugin; name this file in NCCL_TUNER_CONFIG_FILE")
    on_nccl = _STEERED if scope.transport == "nccl" else ()
    steered = {name: labels for name in on_nccl if (labels := _chosen_labels(source, name))}
    by_name = {name: _row(scope, name, labels) for name, labels in steered.items()}
    rows = [row for row, _ in by_name.values() if row]
    notes = unbound(scope)
    if scope.transport != "nccl":
        notes.append(f"nothing that the plugin could steer: it knows NCCL, and this scope is of {scope.transport}")
    elif not steered:
        notes.append(
            "nothing that the plugin could steer: it knows broadcast, reduce, allgather, reducescatter and allreduce, "
            "and this scope has choices for none of them (an all-to-all row would be read as allreduce)"
        )
    notes += [f"no row for {name}: {why}" for name, (_, why) in by_name.items() if why]
    if rows:
        covered = [row.split(",")[0] for row in rows]
        others = [name for name in ("broadcast", "reduce", "allgather", "reducescatter", "allreduce")
                  if name not in covered]  # fmt: skip
        notes.append(
            "the plugin gives 1 channel to calls that match no row; this scope says nothing of " + ", ".join(others)
        )
        notes.append("the plugin gives these channels to small messages too, for which NCCL alone may take fewer")
    else:
        notes.append("the file has no row: do not load the plugin with it")
    comments = [line for note in notes for line in comment(note)]
    columns = comment("collective_type,min_bytes,max_bytes,algorithm,protocol,channels,nNodes,nRanks") if rows else []
    return Exported(lines(head, comments, columns, rows), notes)


def _chosen_labels(source: ExportSource, collective: str) -> list[str]:
    """Return the algorithms that the scope chose for a collective, at any size."""
    chosen = [choice for choice in source.profile.of_scope(source.scope.id) if choice.collective == collective]
    return list(dict.fromkeys(choice.label for choice in chosen))


def _row(scope: Scope, collective: str, labels: Sequence[str]) -> tuple[str, str]:
    """Return a row, or "" and why there is none."""
    if others := [label for label in labels if label != _OWN]:
        return "", f"{' and '.join(others)} is commbench's own, and no call of NCCL's collective"
    env = settings(scope)
    name, possible = _STEERED[collective]
    algorithm = _single(env, "NCCL_ALGO", name, _ALGORITHMS)
    protocol = _single(env, "NCCL_PROTO", name, _PROTOCOLS)
    channels = _channels(env)
    lacking = [
        what
        for what, value in (
            ("NCCL_ALGO to one algorithm", algorithm),
            ("NCCL_PROTO to one protocol", protocol),
            ("NCCL_MIN_NCHANNELS and NCCL_MAX_NCHANNELS to one number", channels),
        )
        if not value
    ]
    if lacking:
        return "", f"the scope does not set {', '.join(lacking)}"
    if algorithm not in possible:
        return "", f"NCCL has no {algorithm} for it"
    ranks = scope.nodes * scope.ranks_per_node if scope.nodes and scope.ranks_per_node else _ANY
    low, high = _ANY_SIZE
    return f"{name},{low},{high},{algorithm},{protocol},{channels},{scope.nodes or _ANY},{ranks}", ""


def _single(env: Mapping[str, str], variable: str, collective: str, known: Sequence[str]) -> str:
    """Return the one value that NCCL allows a collective, as the plugin spells it; "" if there is not exactly one.

    `ring`, or `ring;allreduce:tree`: later entries win, ^ means all but these (parseList in src/graph/tuning.cc).
    """
    value = ""
    for entry in env.get(variable, "").split(";"):
        prefix, colon, values = entry.rpartition(":")
        if not entry or (colon and prefix.lower() != collective):
            continue
        spelt = {name.replace("_", ""): name for name in known}
        value = spelt.get(values.lower(), "")
    return value


def _channels(env: Mapping[str, str]) -> str:
    low, high = env.get("NCCL_MIN_NCHANNELS", ""), env.get("NCCL_MAX_NCHANNELS", "")
    return low if low == high and low.isascii() and low.isdecimal() and int(low) > 0 else ""
