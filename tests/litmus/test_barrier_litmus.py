# SPDX-License-Identifier: GPL-2.0-or-later
"""Orderings as litmus tests: LKMM forbids what they ask for with the ordering, and allows it without."""

from __future__ import annotations

import pytest

from litmus import lkmm, program
from rmaplab.check.barrier_litmus import litmus_tests
from rmaplab.check.barriers import Ordering

# Of the shapes that there are.
ORDERINGS = {
    "publish vma->anon_vma": "smp_store_release()",
    "neighbour's vma->anon_vma": "address dependency",
    "link child context": "smp_store_release()",
    "first child": "address dependency",
    "moves: read_seqcount_begin()": "smp_rmb()",
    "moves: read_seqcount_retry()": "smp_rmb()",
    "moves: write_seqcount_begin()": "smp_wmb()",
    "moves: write_seqcount_end()": "smp_wmb()",
    "pmd_install()": "smp_wmb()",
    "free cow_context": "call_rcu()",
    "put_anon_vma()": "fully ordered atomic",
    "folio_try_get()": "fully ordered atomic",
    "folio_test_clear_unevictable()": "fully ordered atomic",
    "folio_trylock()": "atomic with _acquire",
    "refcount_sub_and_test()": "atomic with _release",
    "raw_read_seqcount()": "smp_load_acquire()",
    "folio_migrate_ksm()": "smp_wmb()",
    "ksm_get_folio()": "smp_rmb()",
    "folio_try_share_anon_rmap_pte()": "smp_mb()",
    "__folio_try_share_anon_rmap()": "smp_mb()",
    "gup_must_unshare()": "smp_rmb()",
}


@pytest.mark.parametrize("name", ORDERINGS)
def test_lkmm_forbids_the_outcome_with_the_ordering_and_allows_it_without(name: str) -> None:
    tests = litmus_tests("design", Ordering(name, ORDERINGS[name], None, 0, 0))
    assert [each.forbidden for each in tests] == [True, False]
    for each in tests:
        test = program.parse(each.text)
        met, _ = program.holds(test, program.run(test, lkmm.Lkmm()))
        assert (met == 0) is each.forbidden, each.text
