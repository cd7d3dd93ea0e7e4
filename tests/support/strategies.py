"""Any profile that can be written, for property tests, with values that shells and files could trip over."""

from __future__ import annotations

from hypothesis import strategies as st

from commbench import algorithms, collectives, transports
from commbench.binding import policies
from commbench.profile import AlgorithmConfig, Choice, Evidence, Profile, Refused, Scope

names = st.text("abcXYZ09-_./ é", min_size=1, max_size=8)
values = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    st.binary().map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape")),
    st.sampled_from(
        ["unset", "", "-n", "--", "-u PATH", "'", "$(exit 3)", "`exit 3`", "\\", "a\nb", "\n", "\\'", "!!"]
    ),
)
variables = st.sampled_from(["NCCL_ALGO", "NCCL_IB_HCA", "OMP_NUM_THREADS", "_x9", "Z"])
numbers = st.floats(allow_nan=False, allow_infinity=False)
int64 = st.integers(-(2**63), 2**63 - 1)
counts = st.integers(0, 2**63 - 1)


@st.composite
def scope_of(draw: st.DrawFn, id: str) -> Scope:
    count = st.none() | st.integers(1, 1 << 20)
    policy = draw(st.sampled_from(policies.POLICIES))
    masks = st.lists(st.sets(st.integers(0, 300), min_size=1).map(sorted), min_size=1, max_size=4)
    return Scope(
        id=id,
        transport=draw(st.sampled_from(list(transports.TABLE))),
        nodes=draw(count),
        ranks_per_node=draw(count),
        versions=draw(st.dictionaries(st.sampled_from(["torch", "nccl", "mpi"]), st.text())),
        gpu=draw(st.text()),
        fabric=draw(st.text()),
        env=draw(st.dictionaries(variables, values)),
        binding=policy,
        cpu_masks=policies.masks_text(draw(masks)) if policy == "explicit" else "",
        binding_memory=draw(st.booleans()),
    )


@st.composite
def config_of(draw: st.DrawFn, collective: str) -> AlgorithmConfig:
    name = draw(st.sampled_from(algorithms.names(collective)))
    return AlgorithmConfig(algorithm=name, params={key: draw(int64) for key in algorithms.get(collective, name).params})


evidences = st.builds(
    Evidence, size_bytes=counts, dtype=st.text(), default=st.text(), default_us=numbers, chosen_us=numbers,
    ratio=numbers, low=st.none() | numbers, high=st.none() | numbers, interval_of=st.none() | st.text(),
    pairs=counts, p=st.none() | numbers, apparent=st.none() | numbers, candidates=counts,
    run=st.text(), verdict=st.text(),
)  # fmt: skip
arguments = st.dictionaries(st.sampled_from(["tp", "op", "alpha"]), int64 | numbers | st.text())


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    scopes = [draw(scope_of(id)) for id in draw(st.lists(names, min_size=1, max_size=3, unique=True))]
    choices = []
    curves = st.tuples(st.sampled_from(scopes), st.sampled_from(list(collectives.TABLE)), st.booleans(), arguments)
    for scope, collective, captured, given_ in draw(st.lists(curves, max_size=4, unique_by=repr)):
        starts = [0, *sorted(draw(st.sets(st.integers(1, 1 << 40), max_size=5)))]
        for low, after in zip(starts, [*starts[1:], None], strict=True):
            config = draw(config_of(collective))
            choices.append(
                Choice(
                    scope=scope.id,
                    collective=collective,
                    min_bytes=low,
                    max_bytes=None if after is None else after - 1,
                    algorithm=config.algorithm,
                    params=config.params,
                    buffers=draw(st.sampled_from(transports.entry(scope.transport).buffers)),
                    on_plain=draw(st.none() | config_of(collective)),
                    captured=captured,
                    arguments=given_,
                    scratch_bytes=draw(counts),
                    multiprocessors=draw(st.none() | st.integers(0, 1000)),
                    evidence=draw(st.lists(evidences, max_size=1)),
                )
            )
    draw(st.randoms(use_true_random=False)).shuffle(choices)
    refused = st.builds(Refused, scope=names, collective=st.text(), label=st.text(), sizes=st.lists(int64),
                        why=st.text(), reason=st.text())  # fmt: skip
    return Profile(
        scopes=scopes,
        choices=choices,
        refused=draw(st.lists(refused, max_size=2)),
        machine=draw(st.text()),
        command=draw(st.lists(st.text(), max_size=2)),
        seconds=draw(numbers),
    )
