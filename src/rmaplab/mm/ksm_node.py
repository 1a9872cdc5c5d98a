# SPDX-License-Identifier: GPL-2.0-or-later
"""The stable node of a KSM page: ksmd comes by the folio through it, without a reference, while the folio migrates.

Models ksm_get_folio() and folio_migrate_ksm() of mm/ksm.c, and what comes before the latter in folio_migrate_flags()
of mm/migrate.c, for a folio that is not in the swap cache.  The machine does not migrate KSM's pages (migrate.py): a
scenario does.

Invariant: a node is removed only when the folio to which it leads is KSM's no more; one that migrates stays KSM's.

Locking: the folio lock of both folios, which a migration has; ksm_get_folio() has none.
"""

from __future__ import annotations

from typing import cast

from rmaplab.mm.page_ref import Page, PageRefs
from rmaplab.sync.order import atomic, depends, read_once, smp_rmb, smp_wmb, write_once


class StableNode:
    """struct ksm_stable_node: the number of its page.  `removed`: somebody found it stale."""

    def __init__(self, kpfn: int) -> None:
        self.kpfn = kpfn
        self.removed = False


def get_folio(refs: PageRefs, node: StableNode) -> int:
    """The number of the node's page, with a reference to it (ksm_get_folio()); 0 if that is KSM's no more."""
    scheduler = refs.scheduler
    while True:
        kpfn = cast(int, read_once(scheduler, "stable_node->kpfn", node, "kpfn", node.kpfn))
        page = refs.pages[kpfn]
        depends(scheduler, "stable_node->kpfn", page)
        if _leads_to(refs, page, node) and refs.try_get(kpfn):
            if _leads_to(refs, page, node):
                return kpfn
            refs.put(kpfn)
        smp_rmb(scheduler, "ksm_get_folio()")
        if read_once(scheduler, "stable_node->kpfn again", node, "kpfn", node.kpfn) == kpfn:
            node.removed = True  # remove_node_from_stable_tree()
            return 0


def _leads_to(refs: PageRefs, page: Page, node: StableNode) -> bool:
    return read_once(refs.scheduler, "folio->mapping of KSM", page, "mapping", page.mapping) is node


def migrate(refs: PageRefs, node: StableNode, new: int) -> None:
    """Page `new` takes the place of the node's."""
    scheduler = refs.scheduler
    old = refs.pages[node.kpfn]
    page = refs.pages[new]
    write_once(scheduler, "newfolio->mapping", page, "mapping")  # __folio_migrate_mapping()
    page.mapping = old.mapping
    atomic(scheduler, "folio_test_clear_active()", old, "flags")
    write_once(scheduler, "set stable_node->kpfn", node, "kpfn")
    node.kpfn = new
    smp_wmb(scheduler, "folio_migrate_ksm()")
    write_once(scheduler, "clear folio->mapping", old, "mapping")
    old.mapping = None
    refs.put(old.number)
