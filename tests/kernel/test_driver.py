# SPDX-License-Identifier: GPL-2.0-or-later
"""What the driver says that ksmd did, from what a guest's memory was before and is after."""

from types import SimpleNamespace
from typing import Any

import pytest

from rmaplab.kernel.driver import Driver
from rmaplab.mm.ksm import BREAK

AT = 0x1000


def memory(of_6: int, of_8: int, ksm: dict[int, list[tuple[int, int]]]) -> Any:
    """Of processes 6 and 8: the page at AT; pages of KSM, with their places."""
    entries = {pid: {AT: SimpleNamespace(kind="anon", number=pfn)} for pid, pfn in ((106, of_6), (108, of_8))}
    return SimpleNamespace(
        by_pid={pid: SimpleNamespace(entries=its) for pid, its in entries.items()},
        pages={pfn: SimpleNamespace(ksm=pfn in ksm) for pfn in (of_6, of_8)},
        ksm_places=ksm,
    )


@pytest.mark.parametrize(
    ("after", "copied"),
    [
        pytest.param(memory(1, 1, {}), [], id="nothing"),
        pytest.param(memory(2, 1, {}), [6], id="a copy"),
        pytest.param(memory(2, 1, {1: []}), [6], id="a copy of what others map still"),
        pytest.param(memory(2, 1, {2: [(6, AT)]}), [], id="merged"),
        pytest.param(memory(2, 1, {1: [], 2: [(6, AT)]}), [6], id="a copy that was merged later"),
        pytest.param(memory(2, 1, {1: [(8, AT)], 2: [(6, AT)]}), [], id="each merged with another"),
        pytest.param(memory(2, 3, {1: [], 2: [(6, AT)], 3: [(8, AT)]}), [], id="both merged"),
    ],
)
def test_what_ksmd_took_in_vain(after: Any, copied: list[int]) -> None:
    """mm/ksm.c cmp_and_merge_page(): break_cow() where the second page cannot be merged with the first."""
    driver = SimpleNamespace(pids={6: 106, 8: 108})
    events = Driver._copied(driver, memory(1, 1, {}), after)  # type: ignore[arg-type]
    assert [(event.pid, event.addr, event.flags) for event in events] == [(pid, AT, BREAK) for pid in copied]
