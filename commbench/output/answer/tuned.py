"""The answer of `commbench tune`: what was confirmed better than the default, in launches of its own."""

from __future__ import annotations

from collections.abc import Sequence

from commbench.output.answer import words
from commbench.output.answer.claims import Answer, FasterRange, Proof, merged
from commbench.profile import Choice, Evidence, Profile, name_collective
from commbench.records import network_note
from commbench.stats import MINIMUM_GAIN

_LEAST = f"{100 * MINIMUM_GAIN:g} %"


def answer(profile: Profile, use: tuple[str, str], saving: str = "") -> Answer:
    """Return what the profile is worth. use: what to do with it, and the command; saving: of a program's step."""
    sentences, found = [], []
    for scope in profile.scopes:
        choices = profile.of_scope(scope.id)
        ranges = gains(choices)
        found += ranges
        tried = sum(len(choice.evidence) for choice in choices)
        proven = sum(len(one.proofs) for one in ranges)
        rest = f"the default is kept at {'all' if not proven else ''} {words.count(tried - proven, 'size')}"
        texts = [f"{one.where}: {one}" for one in ranges] + ([" ".join(rest.split())] if tried > proven else [])
        if not ranges:
            texts = [f"nothing is proven better than the default at {words.count(tried, 'size')}{_reason(choices)}"]
        sentences.append(f"{scope}: {', '.join(texts)}")
    sentences += dict.fromkeys(filter(None, (network_note(scope.fabric) for scope in profile.scopes)))
    sentences += [saving] if saving else []
    if found:
        return Answer(sentences=sentences, claims=found, step=use[0], command=use[1])
    if _settled(profile):
        return Answer(sentences=sentences, step=f"keep the default: what may be gained is below {_LEAST}")
    longer = words.command({"command": profile.command}, "tune", "budget=30m")
    return Answer(sentences=sentences, step="keep the default, or search for longer", command=longer)


def _settled(profile: Profile) -> bool:
    """Return whether nothing was near a gain that counts: a longer search would find none either."""
    tried = [proof for choice in profile.choices for proof in choice.evidence]
    return bool(tried) and all(
        proof.pairs == 0 if proof.high is None else proof.high < 1 + MINIMUM_GAIN for proof in tried
    )


def gains(choices: Sequence[Choice]) -> list[FasterRange]:
    """Return what was confirmed, a range for each choice and its neighbouring sizes."""
    return [
        one
        for choice in choices
        for one in merged(
            [(proof.size_bytes, _gain(name_collective(choice, choices), choice, proof)) for proof in choice.evidence]
        )
    ]


def _gain(where: str, choice: Choice, proof: Evidence) -> FasterRange | None:
    if not proof.confirmed:
        return None
    name = choice.label + (f", {choice.buffers} buffers" if choice.buffers != "plain" else "")
    return FasterRange(
        where=where, faster=name, than=proof.default,
        fastest=False, is_default=False, among=1,
        proofs=(Proof(size_bytes=proof.size_bytes, time_us=proof.chosen_us, than_us=proof.default_us,
                      factor=proof.ratio, low=proof.low, high=proof.high),),
    )  # fmt: skip


def _reason(choices: Sequence[Choice]) -> str:
    """Return why the default was kept, where one reason holds at all sizes."""
    reasons = {proof.verdict for choice in choices for proof in choice.evidence if not proof.confirmed}
    return f" ({reasons.pop()})" if len(reasons) == 1 else ""
