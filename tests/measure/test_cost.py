# SPDX-License-Identifier: GPL-2.0-or-later
"""A cost profile turns counts into time, and says what it cannot price."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmaplab.measure.cost import (
    COLD_LINE,
    COLD_LINES,
    REQUIRED,
    CostError,
    CostProfile,
    add_counts,
    cold,
    counts_of,
    load_costs,
    price,
    write_costs,
)
from rmaplab.sync.locks import RwSemaphore
from rmaplab.sync.work import Ledger

KEYS = ["nodes", "faults", "pages"]


def a_profile(**costs: float) -> CostProfile:
    return CostProfile("mine", "a machine", "6.18", "2026-11-24", "by hand", {**dict.fromkeys(REQUIRED, 1.0), **costs})


def test_the_shipped_profile_is_valid_and_is_the_default() -> None:
    profile = load_costs()
    assert profile == load_costs(profile.name)
    assert profile.kernel.startswith("6.")


def test_cold_work_waits_for_its_lines_and_other_work_does_not() -> None:
    warm, without = load_costs(), load_costs("cold")
    for key, lines in COLD_LINES.items():
        assert without.cost_of(key) == (warm.cost_of(key) or 0) + lines * warm.costs[COLD_LINE]
    # A look in vain is priced as a place that its user would have visited in vain, warm or cold.
    assert without.cost_of("entries looked at in vain") == without.cost_of("rmap places visited")
    assert without.cost_of("faults") == warm.cost_of("faults") and without.name != warm.name
    with pytest.raises(CostError, match="does not say what 'cold line' costs"):
        cold(a_profile())


def test_pools_locks_and_tallies_are_priced_by_their_keys() -> None:
    ledger = Ledger("design")
    ledger.tally("nodes").count = 7
    pool = ledger.pool("thing", 64)
    pool.alloc(3)
    pool.free(1)
    lock = RwSemaphore(ledger.lock_class("root"), None)
    lock.down_read()
    lock.down_write()
    assert counts_of(ledger) == {"nodes": 7, "alloc thing": 3, "free thing": 1, "lock root": 2}
    costs = {"nodes": 2.0, "alloc thing": 10.0, "free thing": 5.0, "lock root": 20.0}
    time = price(msgspec.structs.replace(a_profile(), costs={**a_profile().costs, **costs}), counts_of(ledger))
    assert time.ns == 7 * 2 + 3 * 10 + 5 + 2 * 20
    assert list(time.parts) == ["lock root", "alloc thing", "nodes", "free thing"]
    assert time.gaps == {}


def test_what_has_no_cost_is_a_gap_and_never_silent() -> None:
    ledger = Ledger("design")
    ledger.tally("bells rung").count = 7
    ledger.tally("whistles blown").count = 0
    time = price(a_profile(), counts_of(ledger))
    assert (time.ns, time.gaps) == (0.0, {"bells rung": 7})


def test_a_stand_in_prices_what_was_not_measured() -> None:
    profile = msgspec.structs.replace(
        a_profile(nodes=3.0, **{"lock root": 20.0}), stand_ins={"lock *": "lock root", "bells rung": "nodes"}
    )
    assert profile.cost_of("lock of a design that nobody knows") == 20.0
    assert profile.cost_of("bells rung") == 3.0
    assert profile.cost_of("locks") is None


@given(
    st.lists(st.dictionaries(st.sampled_from(KEYS), st.integers(0, 10**9)), max_size=4),
    st.dictionaries(st.sampled_from(KEYS), st.floats(0, 1e6)),
)
def test_time_is_the_sum_of_its_parts_over_all_ledgers(works: list[dict[str, int]], costs: dict[str, float]) -> None:
    profile = a_profile(**costs)
    ledgers = []
    for work in works:
        ledger = Ledger("some")
        for key, count in work.items():
            ledger.tally(key).count = count
        ledgers.append(ledger)
    time = price(profile, add_counts(map(counts_of, ledgers)))
    assert time.ns == pytest.approx(sum(costs.get(k, 0) * n for w in works for k, n in w.items()))
    assert set(time.gaps) == {k for w in works for k, n in w.items() if n and k not in costs}


def test_a_profile_can_be_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    write_costs(path, a_profile(nodes=2.5))
    assert load_costs(str(path)) == a_profile(nodes=2.5)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.json"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"costs": {"faults": -1.0}}, "'faults' costs -1.0 ns"),
        ({"costs": {"faults": 1.0}}, "does not say what 'handover' costs"),
        ({"stand_ins": {"lock *": "nothing"}}, "'lock *' is to cost what 'nothing' costs, which it does not say"),
        ({"groups": [["a", "b"]]}, "it has the group of 'a', which has no cost"),
        ({"name": ""}, "its name is empty"),
        ({"costs": {"faults": "dear"}}, "Expected `float`"),
        ({"colour": "red"}, "unknown field `colour`"),
    ],
)
def test_a_bad_profile_is_refused_with_a_sentence(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(msgspec.json.encode({**msgspec.to_builtins(a_profile()), **change}))
    with pytest.raises(CostError, match="cost profile") as error:
        load_costs(str(path))
    assert sentence in str(error.value)


def test_a_profile_that_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(CostError, match=r"there is no cost profile 'pdp-11'.*linux-"):
        load_costs("pdp-11")
