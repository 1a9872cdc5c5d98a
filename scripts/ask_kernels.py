#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Let kernels answer random histories, for tests/kernel/test_random_answers.py: `scripts/ask_kernels.py 7.3 6.12`.

A guest of each kernel executes HISTORIES histories in lockstep with the model, some minutes for a kernel; what it
answered, and digests of its state, are written to tests/kernel/random_answers/KERNEL.txt.  A file keeps the events
themselves: what reclaim takes and where execve() puts a stack is a matter of chance, and a change of the author of
random histories (check/histories.py) leaves the file as right as it was.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from rmaplab.kernel import setup
from rmaplab.kernel.fixtures import random_answer
from rmaplab.kernel.lockstep import Witness

TARGET: Final = Path(__file__).resolve().parent.parent / "tests/kernel/random_answers"
HISTORIES: Final = {"7.3": 81, "7.2": 9, "6.12": 20, "6.1": 12}
STEPS: Final = 120


def ask(version: str) -> bool:
    """Whether the model agreed everywhere."""
    texts, differ = [], False
    with Witness(setup.need(version)) as witness:
        for seed in range(1, HISTORIES[version] + 1):
            text, found = random_answer(witness, seed, STEPS)
            if found is not None:
                print(f"{version}, seed {seed}: the model differs at {found.event}: {found.difference}")
                differ = True
            texts.append(text)
    TARGET.mkdir(exist_ok=True)
    (TARGET / f"{version}.txt").write_text("".join(texts))
    print(f"{version}: {sum(map(bool, texts))} histories")
    return not differ


if __name__ == "__main__":
    agreed = [ask(version) for version in sys.argv[1:] or HISTORIES]
    sys.exit(not all(agreed))
