# SPDX-License-Identifier: GPL-2.0-or-later
"""Invariants of any kernel's anonymous reverse map, checked in a snapshot.

A witness that was misread, or a kernel whose structures are damaged, must not pass for a good one.  The rules
are those of mm/rmap.c and include/linux/rmap.h, each stated with the message that reports its breach.

The snapshot has to hold all processes that are related by fork to one that is in it: counts are compared
with what was found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from rmaplab.kernel.columns import Columns, Int64s, of
from rmaplab.kernel.snapshot import PAGE_SHIFT, AnonVma, Snapshot, Vma
from rmaplab.mm.vma import VM_PFNMAP


def problems(snapshot: Snapshot, columns: Columns | None = None) -> list[str]:
    """What does not hold, one sentence each; empty if all does.  `columns`: entries and pages, if the snapshot
    was read without."""
    found = [*_vmas(snapshot), *_chains(snapshot), *_families(snapshot)]
    for anon_vma in snapshot.anon_vmas.values():
        found += _tree(snapshot, anon_vma)
    return [*found, *_pages(snapshot, of(snapshot) if columns is None else columns)]


def _vmas(snapshot: Snapshot) -> Iterator[str]:
    for mm in snapshot.mms.values():
        end = 0
        for vma in mm.vmas:
            if vma.start < end or vma.end <= vma.start:
                yield f"{_name(vma)}: overlaps the VMA before it, or is empty"
            if vma.mm != mm.address:
                yield f"{_name(vma)}: says that it belongs to mm {vma.mm:#x}, and is in the tree of {mm.address:#x}"
            if not vma.attached:
                yield f"{_name(vma)}: is in the tree of its address space, and says that it is not"
            if vma.anon_pgoff != vma.pgoff and not (vma.file or vma.special or vma.flags & VM_PFNMAP):
                yield f"{_name(vma)}: no file, and yet page offset {vma.pgoff:#x} and {vma.anon_pgoff:#x} for its pages"
            end = vma.end


def _chains(snapshot: Snapshot) -> Iterator[str]:
    """The AVCs on chains are those in trees, and both ends of each agree."""
    on_chains: set[int] = set()
    for vma in snapshot.vmas.values():
        anon_vmas = set()
        for address in vma.chain:
            avc = snapshot.avcs[address]
            if address in on_chains:
                yield f"AVC {address:#x}: is on a chain twice"
            on_chains.add(address)
            if avc.vma != vma.address:
                yield f"AVC {address:#x}: on the chain of {_name(vma)}, but says VMA {avc.vma:#x}"
            anon_vmas.add(avc.anon_vma)
        if vma.anon_vma and vma.anon_vma not in anon_vmas:
            yield f"{_name(vma)}: its anon_vma {vma.anon_vma:#x} is not on its chain"
        if vma.chain and not vma.anon_vma:
            yield f"{_name(vma)}: has a chain and no anon_vma"
        roots = {snapshot.anon_vmas[anon_vma].root for anon_vma in anon_vmas if anon_vma in snapshot.anon_vmas}
        if len(roots) > 1:
            yield f"{_name(vma)}: its chain leads to {len(roots)} roots"
    in_trees: Counter[int] = Counter()
    for anon_vma in snapshot.anon_vmas.values():
        for node in anon_vma.tree:
            in_trees[node.avc] += 1
            if snapshot.avcs[node.avc].anon_vma != anon_vma.address:
                yield f"AVC {node.avc:#x}: in the tree of anon_vma {anon_vma.address:#x}, but says another"
    for address in on_chains ^ set(in_trees):
        where = "on a chain and in no tree" if address in on_chains else "in a tree and on no chain"
        yield f"AVC {address:#x}: {where}"
    yield from (f"AVC {address:#x}: in trees {count} times" for address, count in in_trees.items() if count > 1)


def _families(snapshot: Snapshot) -> Iterator[str]:
    anon_vmas = snapshot.anon_vmas
    children = Counter(anon_vma.parent for anon_vma in anon_vmas.values())
    members = Counter(anon_vma.root for anon_vma in anon_vmas.values())
    active = Counter(vma.anon_vma for vma in snapshot.vmas.values())
    for address, anon_vma in anon_vmas.items():
        name = f"anon_vma {address:#x}"
        root = anon_vmas.get(anon_vma.root)
        parent = anon_vmas.get(anon_vma.parent)
        if root is None or root.root != root.address or root.parent != root.address:
            yield f"{name}: its root {anon_vma.root:#x} is none, or not its own root and parent"
        if parent is None or parent.root != anon_vma.root:
            yield f"{name}: its parent {anon_vma.parent:#x} is none, or of another family"
        if (anon_vma.parent == address) != (anon_vma.root == address):
            yield f"{name}: a root is its own parent, and nothing else is"
        if anon_vma.num_children != children[address]:
            yield f"{name}: counts {anon_vma.num_children} children, and {children[address]} call it parent"
        if anon_vma.num_active_vmas != active[address]:
            yield f"{name}: counts {anon_vma.num_active_vmas} active VMAs, and {active[address]} use it"
        least = members[address] if anon_vma.root == address else 1
        if anon_vma.refcount < least:
            yield f"{name}: refcount {anon_vma.refcount}, and there are {least} references"


def _tree(snapshot: Snapshot, anon_vma: AnonVma) -> Iterator[str]:
    """Sorted by first page offset, and each node knows the last page offset below it."""
    name = f"anon_vma {anon_vma.address:#x}"
    nodes = {node.avc: node for node in anon_vma.tree}
    before = -1
    for node in anon_vma.tree:
        vma = snapshot.vmas.get(snapshot.avcs[node.avc].vma)
        if vma is None:
            yield f"{name}: AVC {node.avc:#x} in its tree leads to a VMA in no address space"
            continue
        if vma.anon_pgoff < before:
            yield f"{name}: its tree is not in order at {_name(vma)}"
        before = vma.anon_pgoff
        last = vma.anon_pgoff + (vma.end - vma.start >> PAGE_SHIFT) - 1
        for child in (node.left, node.right):
            if child in nodes:
                last = max(last, nodes[child].subtree_last)
            elif child:
                yield f"{name}: AVC {node.avc:#x} has a child that its tree does not hold"
        if node.subtree_last != last:
            yield f"{name}: AVC {node.avc:#x} says that {node.subtree_last:#x} is the last below it, not {last:#x}"


def _pages(snapshot: Snapshot, columns: Columns) -> Iterator[str]:
    entries, pages, vmas = columns.entries, columns.pages, columns.vmas
    anon = np.flatnonzero(entries.page >= 0)
    for row in anon[entries.vma[anon] < 0].tolist():
        yield f"page {entries.number[row]:#x} at {entries.addr[row]:#x}: an entry maps it where there is no VMA"
    own = anon[(entries.vma[anon] >= 0) & ~pages.ksm[entries.page[anon]]]
    page, vma = entries.page[own], entries.vma[own]
    offset = np.array([vma.anon_pgoff - (vma.start >> PAGE_SHIFT) for vma in vmas], dtype=np.int64)
    index = (entries.addr[own] >> PAGE_SHIFT) + offset[vma] if len(own) else page
    for i in np.flatnonzero(index != pages.index[page]).tolist():
        yield f"{_place(columns, own[i])}: index {pages.index[page[i]]:#x}, not {index[i]:#x}"
    pairs = np.unique(np.stack([vma.astype(np.uint64), pages.anon_vma[page]], axis=1), axis=0)
    for which, anon_vma in pairs.tolist():
        if anon_vma not in {snapshot.avcs[address].anon_vma for address in vmas[which].chain}:
            row = own[np.flatnonzero((vma == which) & (pages.anon_vma[page] == anon_vma))[0]]
            yield f"{_place(columns, row)}: its anon_vma {anon_vma:#x} is not on the VMA's chain"
    counted = np.bincount(entries.page[anon], minlength=len(pages))
    for row in np.flatnonzero(counted != pages.mapcount).tolist():
        yield f"page {pages.pfn[row]:#x}: mapcount {pages.mapcount[row]}, and {counted[row]} entries map it"
    for row in np.flatnonzero(pages.exclusive & (counted > 1)).tolist():
        yield f"page {pages.pfn[row]:#x}: exclusive, and {counted[row]} entries map it"
    yield from _large_folios(snapshot, columns, anon)


def _large_folios(snapshot: Snapshot, columns: Columns, anon: Int64s) -> Iterator[str]:
    """What a large folio counts of its entries, in all and by address space, is what there is."""
    entries, pages = columns.entries, columns.pages
    if not pages.counts:
        return
    ids = [mm.id for mm in snapshot.mms.values()]
    mapped: dict[int, Counter[int]] = {}
    for head, mm in zip(pages.head[entries.page[anon]].tolist(), entries.mm[anon].tolist(), strict=True):
        if head in pages.counts:
            mapped.setdefault(head, Counter())[ids[mm]] += 1
    orders = dict(zip(pages.head.tolist(), pages.order.tolist(), strict=True))
    for head, counts in pages.counts.items():
        name, by_mm = f"folio {head:#x}", mapped.get(head, Counter())
        # An entry of all of it is one, and seen as many.
        total = by_mm.total() - counts.whole * ((1 << orders[head]) - 1)
        if counts.mapped != total:
            yield f"{name}: counts {counts.mapped} entries, and {total} map it"
        for id, count in counts.slots if not counts.whole else ():
            if by_mm[id] != count:
                yield f"{name}: counts {count} entries of address space {id}, and {by_mm[id]} map it"
        if counts.slots and len(by_mm) > 1 and not counts.shared:
            yield f"{name}: not shared by what it says, and {len(by_mm)} address spaces map it"


def _place(columns: Columns, row: int) -> str:
    entries = columns.entries
    return f"page {entries.number[row]:#x} at {entries.addr[row]:#x} of {_name(columns.vmas[entries.vma[row]])}"


def _name(vma: Vma) -> str:
    return f"VMA {vma.address:#x} ({vma.start:#x}-{vma.end:#x})"
