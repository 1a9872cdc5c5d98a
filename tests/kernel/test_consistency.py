# SPDX-License-Identifier: GPL-2.0-or-later
"""A damaged structure in what was read of a kernel is found, whichever it is; and the model is built from the rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rmaplab.check.truth import Truth
from rmaplab.kernel.columns import of
from rmaplab.kernel.consistency import problems
from rmaplab.kernel.importer import build, differences, examine
from rmaplab.kernel.snapshot import AnonVma, Avc, Entry, Mm, Page, Snapshot, TreeNode, Vma
from rmaplab.mm.profile import profile_for

ROOT, CHILD = 0xA000, 0xB000  # anon_vmas
PARENT_MM, CHILD_MM = 0x1000, 0x2000
START, PGOFF = 0x7F00_0000_0000, 0x7F00_0000_0
FIRST, SECOND = 100, 101  # pages: one is shared, the other was copied by the child


def family() -> Snapshot:
    """A process with two pages of anonymous memory, and its child, which has written to the second."""
    snapshot = Snapshot()
    root, child = AnonVma(ROOT, ROOT, ROOT, 2, 2, 1), AnonVma(CHILD, ROOT, ROOT, 1, 0, 1)
    snapshot.anon_vmas.update({ROOT: root, CHILD: child})
    for pid, mm_address, own, chain in ((7, PARENT_MM, ROOT, (0xC0,)), (8, CHILD_MM, CHILD, (0xD1, 0xD0))):
        mm = Mm(mm_address, 0, 0, 0, 0)
        vma = Vma(mm_address + 8, mm_address, START, START + 0x2000, PGOFF, 0x100073, 0, own, PGOFF)
        mm.pids.append(pid)
        mm.vmas.append(vma)
        vma.chain.extend(chain)
        snapshot.mms[mm_address] = snapshot.by_pid[pid] = mm
        snapshot.vmas[vma.address] = vma
    for address, mm_address, anon_vma in ((0xC0, PARENT_MM, ROOT), (0xD0, CHILD_MM, ROOT), (0xD1, CHILD_MM, CHILD)):
        snapshot.avcs[address] = Avc(address, mm_address + 8, anon_vma)
    root.tree.extend([TreeNode(0xC0, 0, 0xD0, PGOFF + 1), TreeNode(0xD0, 0, 0, PGOFF + 1)])
    child.tree.append(TreeNode(0xD1, 0, 0, PGOFF + 1))
    for pfn, index, anon_vma, mapcount in (
        (FIRST, 0, ROOT, 2), (SECOND, 1, ROOT, 1), (SECOND + 1, 1, CHILD, 1),
    ):  # fmt: skip
        page = snapshot.pages[pfn] = Page(pfn, pfn)
        page.anon_vma, page.index, page.mapcount = anon_vma, PGOFF + index, mapcount
    parent, forked = snapshot.mms[PARENT_MM].entries, snapshot.mms[CHILD_MM].entries
    parent[START] = forked[START] = Entry("anon", FIRST, False, False)
    parent[START + 0x1000] = Entry("anon", SECOND, False, False)
    forked[START + 0x1000] = Entry("anon", SECOND + 1, False, False)
    return snapshot


def set_(**fields: int) -> Callable[[object], None]:
    def change(target: object) -> None:
        for name, value in fields.items():
            setattr(target, name, value)

    return change


DAMAGES: dict[str, Callable[[Snapshot], object]] = {
    "root": lambda s: set_(root=CHILD)(s.anon_vmas[CHILD]),
    "parent": lambda s: set_(parent=CHILD)(s.anon_vmas[CHILD]),
    "child count": lambda s: set_(num_children=1)(s.anon_vmas[ROOT]),
    "active count": lambda s: set_(num_active_vmas=2)(s.anon_vmas[ROOT]),
    "refcount": lambda s: set_(refcount=1)(s.anon_vmas[ROOT]),
    "page offset": lambda s: set_(pgoff=PGOFF + 1)(s.vmas[CHILD_MM + 8]),
    "tree pointer": lambda s: set_(left=0xC0)(s.anon_vmas[CHILD].tree[0]),
    "link lost from a tree": lambda s: s.anon_vmas[ROOT].tree.pop(),
    "link lost from a chain": lambda s: s.vmas[CHILD_MM + 8].chain.pop(),
    "link to another VMA": lambda s: set_(vma=PARENT_MM + 8)(s.avcs[0xD0]),
    "mapcount": lambda s: set_(mapcount=3)(s.pages[FIRST]),
    "index": lambda s: set_(index=PGOFF + 2)(s.pages[SECOND]),
    "anon_vma of a page": lambda s: set_(anon_vma=CHILD)(s.pages[SECOND]),
    "exclusive page": lambda s: set_(exclusive=True)(s.pages[FIRST]),
    "entry without VMA": lambda s: s.mms[CHILD_MM].vmas.clear(),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_structure_is_found(damage: Callable[[Snapshot], object]) -> None:
    snapshot = family()
    assert problems(snapshot) == []
    damage(snapshot)
    assert problems(snapshot)


def test_the_model_holds_what_was_read_and_every_design_finds_its_pages() -> None:
    snapshot = family()
    machine, ancestry, left_out, unplaced = build(snapshot, of(snapshot), {}, profile_for("6.12")[0])
    assert differences(machine, of(snapshot)) == []
    assert (ancestry.living, ancestry.alone, left_out, unplaced) == (1, 1, {}, frozenset())
    assert sorted(len(folio.entries) for folio in Truth(machine).mapped_folios()) == [1, 1, 2]
    for finding in examine(machine):
        assert (finding.folios, finding.entries, finding.missing) == (3, 4, 0)
        assert finding.useful == 4
    places = {finding.design: finding.places for finding in examine(machine)}
    # The parent's copied page may be the child's, too; only a list of entries knows better.
    assert places["anon_vma"] == places["anon_vma_lazy"] == places["cow_context"] == 5
    assert places["anonmm"] == 6  # and the child's the parent's
    assert places["pte_chain"] == 4


def test_a_mapcount_that_the_model_does_not_reproduce_is_told() -> None:
    snapshot = family()
    machine = build(snapshot, of(snapshot), {}, profile_for("6.12")[0]).machine
    snapshot.pages[SECOND].mapcount = 2
    assert differences(machine, of(snapshot))
