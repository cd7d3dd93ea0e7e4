"""Mistakes planted in dispatch and combine, and right runs: `make bench ARGS="routed 500 1000"`.

A copy that takes a row twice, swaps two, leaves one out or out altogether (what the call before has left), and a sum
that lacks a term, or has a neighbour's row or weight: each on one rank, in one call, over the scripted transport. One
in eight is of a payload: a block with its neighbour's scale. A third of the right runs have a payload.
"""

from __future__ import annotations

import itertools
from collections import Counter

from commbench import payloads
from tests.support.planted_rows import HOPPING, KINDS, PAYLOADS, planted, planted_scale, spec_of, wrong_elements

LOSSY = [*payloads.TABLE]


def main(words: list[str]) -> int:
    mistakes, runs = map(int, words) if words else (500, 1000)
    struck: Counter[str] = Counter()
    unseen: list[tuple[str, str, str, int]] = []
    for number in itertools.count():
        if struck.total() >= mistakes:
            break
        if number % 8 == 7:
            (collective, name), kind = PAYLOADS[number // 8 % len(PAYLOADS)], "scale"
            hit, wrong = planted_scale(collective, name, number // 8 % 5, number)
        else:
            (collective, name), kind = HOPPING[number % len(HOPPING)], KINDS[number // len(HOPPING) % len(KINDS)]
            hit, wrong = planted(collective, name, kind, number // len(HOPPING) // len(KINDS) % 3, number)
        struck[kind] += hit
        if hit and not wrong:
            unseen.append((collective, name, kind, number))
    alarms = 0
    for number in range(runs):
        asked = {"payload": LOSSY[number // 3 % len(LOSSY)]} if number % 3 == 0 else {}
        collective, name = (PAYLOADS if asked else HOPPING)[number % len(PAYLOADS if asked else HOPPING)]
        spec = spec_of(collective, name, 2, 2, tokens=1 + number % 9, model_dim=16, router_seed=number, **asked)
        alarms += bool(wrong_elements(collective, name, spec, number))
    print(f"{struck.total()} mistakes, {len(unseen)} unseen: {dict(struck)}; {runs} right runs, {alarms} alarms")
    for one in unseen:
        print("unseen:", *one)
    return int(bool(unseen or alarms))
