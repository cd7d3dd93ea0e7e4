"""`make bench`: what commbench itself costs, measured side by side. Prints tables; asserts nothing.

make bench                      everything (some minutes)
make bench ARGS="bare kills"    some of it
"""

from __future__ import annotations

import sys

from tests.bench import bare, emulated, harness, imb, kills, startup

BENCHES = {
    "startup": startup.main,
    "harness": harness.main,
    "bare": bare.main,
    "imb": imb.main,
    "kills": kills.main,
    "emulated": emulated.main,
}


def main() -> None:
    names = sys.argv[1:] or list(BENCHES)
    for name in names:
        if name not in BENCHES:
            sys.exit(f"error: unknown bench {name!r}; known: {', '.join(BENCHES)}")
    for name in names:
        print(f"## {name}", flush=True)
        BENCHES[name]()
        print(flush=True)


main()
