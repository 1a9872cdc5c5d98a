# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of folios of 2 MiB, of page tables that go, and of madvise() under one VMA's lock, taken out one by one: what
a kernel answered to one history contradicts what is left, or a race is lost.

A mutant here is a change of one place of the sources, since these rules are functions that no class can override.  It
is made in a copy, which is run interpreted.  docs/kernels/7.3.md has the table; rules that are switches of a profile
are in test_answers.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest

import rmaplab
from rmaplab.check import mutants, race_mutants
from rmaplab.check.weak_mutants import WEAKENED
from rmaplab.mm.profile import Profile

ROOT = Path(__file__).parents[2]
SOURCES = Path(rmaplab.__file__).parent


class Change(NamedTuple):
    """rule: what the change takes away; by: the fixture of 7.3 that contradicts it, or the scenario that breaks
    (anon_vma)"""

    rule: str
    path: str
    old: str
    new: str
    by: str


CHANGES = (
    # Faults
    Change("2 MiB lie in the VMA", "huge_pmd.py", "or start < vma.start or start + LEAF_SIZE > vma.end",
           "or start < vma.start", "huge_folio"),
    Change("2 MiB begin in the VMA", "huge_pmd.py", "or start < vma.start or start + LEAF_SIZE > vma.end",
           "or start + LEAF_SIZE > vma.end", "huge_folio"),
    Change("MADV_NOHUGEPAGE is heard", "huge_pmd.py", "vma.flags & VM_NOHUGEPAGE or", "", "huge_folio"),
    Change("files and shared memory have folios of their own", "huge_pmd.py", "vma.file is not None or", "",
           "huge_folio_only_of_anonymous_memory"),
    Change("a read maps the zero page of 2 MiB", "huge_pmd.py", "    if first and write:\n", "    if first:\n",
           "huge_zero_page"),
    Change("a read prepares the VMA", "huge_pmd.py", "    system.prepare(vma)\n    page_table",
           "    if write:\n        system.prepare(vma)\n    page_table", "huge_folio"),
    Change("its index is that of its first page", "huge_pmd.py",
           "folios.alloc_large(vma.anon_pgoff + ((start - vma.start) >> PAGE_SHIFT), order)",
           "folios.alloc_large(vma.anon_pgoff, order)", "huge_folio"),
    Change("an access makes the entry young, a write dirty", "huge_pmd.py",
           "leaf.v[:] |= PTE_YOUNG | (PTE_DIRTY if write else 0)", "pass", "huge_folio_freed"),
    # Copy-on-write
    Change("a write asks who else maps it", "huge_pmd.py", "system.mapcount(head) > LEAF_ENTRIES or head", "head",
           "huge_folio_copied"),
    Change("who alone has it takes it over", "huge_pmd.py", "        if system.mapcount(head)",
           "        return False\n        if system.mapcount(head)", "huge_folio_taken_over_whole"),
    Change("it goes to the anon_vma of who takes it over", "huge_pmd.py",
           "            design.folio_reused(vma, head, LEAF_ENTRIES)", "            pass",
           "huge_folio_taken_over_whole"),
    Change("all of it becomes writable", "huge_pmd.py", "leaf.v[:] |= PTE_EXCLUSIVE", "leaf.m[0] |= PTE_EXCLUSIVE",
           "huge_folio_taken_over_whole"),
    # Fork
    Change("fork takes the right to write", "huge_pmd.py", "    leaf.v[:] &= shared\n", "", "huge_folio_copied"),
    Change("fork copies it as one entry", "huge_pmd.py", "    new.huge = True\n", "", "huge_folio_copied"),
    # Splitting
    Change("a boundary splits it", "huge_pmd.py", "    if start != addr and vma.start <= start", "    if start < 0",
           "huge_folio_cut_by_flags"),
    Change("split, it counts entry by entry", "huge_pmd.py",
           "    system.large_mapped(mm, head, LEAF_ENTRIES)\n    system.large_unmapped(mm, head, 1)", "    pass",
           "huge_folio_copied"),
    Change("a folio that is split has no such entry", "huge_memory.py",
           "                huge_pmd.split_at(system, vma.mm, addr)\n", "                pass\n", "huge_folio_freed"),
    Change("advice for a part of it splits the entry", "memory.py", "if last - first == LEAF_ENTRIES and huge_pmd.zap",
           "if huge_pmd.zap", "huge_folio_dropped"),
    # Advice
    Change("MADV_FREE spares what others map", "madvise.py", "    if leaf.huge and seems_shared(system, head):",
           "    if False:", "huge_folio_freed_while_shared"),
    Change("advice for all of it splits nothing", "huge_memory.py", "elif not whole or not leaf.huge:", "else:",
           "huge_folio_freed"),
    Change("advice spares what others map", "huge_memory.py", "            if _spares(system, leaf, head, frees):",
           "            if False:", "huge_folio_advised_while_shared"),
    Change("reclaim splits the entry first", "vmscan.py", "if self.slot < 0 and self.system.profile.huge_lazyfree:",
           "if self.slot < 0:", "huge_folio_freed"),
    # Page tables that go
    Change("MADV_DONTNEED frees a table that it leaves empty", "memory.py", "                empty = leaf.used == 0\n",
           "                empty = False\n", "huge_folio_dropped"),
    Change("only if it covers all of it", "memory.py", "-(-start // LEAF_SIZE) * LEAF_SIZE, end & -LEAF_SIZE",
           "start, end", "leaf_emptied_in_parts"),
    # Moves
    Change("only all of a leaf moves whole", "mremap.py", "    if length == LEAF_SIZE:\n", "    if True:\n",
           "leaf_moved_whole"),
    Change("moved elsewhere, it is split", "mremap.py", "    if leaf.huge and not moved:\n", "    if False:\n",
           "huge_folio_moved_where_it_does_not_fit"),
    Change("a move begins below only if nothing is there", "mremap.py",
           "return not tree.overlapping(old & -LEAF_SIZE, old) and not tree.overlapping(new & -LEAF_SIZE, new)",
           "return True", "leaf_moved_whole_from_its_middle"),
    Change("UFFDIO_MOVE leaves a shared one", "userfaultfd.py", "    if entry & (PTE_ZERO | PTE_EXCLUSIVE) == 0:\n",
           "    if False:\n", "huge_folio_from_which_pages_move"),
    Change("UFFDIO_MOVE splits what goes elsewhere", "userfaultfd.py",
           "(source | target) & (LEAF_SIZE - 1) or left < LEAF_SIZE or ", "", "huge_folio_from_which_pages_move"),
    Change("UFFDIO_MOVE moves the index", "userfaultfd.py", "            folios.index.m[head + i] = first + i\n", "",
           "huge_folio_from_which_pages_move"),
    Change("UFFDIO_MOVE overwrites nothing", "userfaultfd.py",
           "    if mm.page_table.is_huge(target):\n        return -EEXIST\n", "",
           "huge_folio_moved_where_something_is"),
    # Migration
    Change("it migrates as one entry", "migrate.py", '        """set_pmd_migration_entry()"""\n',
           "        return super().whole(vma, addr, leaf)\n", "huge_folio_migrated_whole"),
    Change("mprotect() gives the right to write back", "mprotect.py",
           "(system.profile.huge_writable or not leaf.huge)", "not leaf.huge", "huge_folio_writable_again"),
    # Advice under one VMA's lock
    Change("one VMA's lock is for a range in that VMA", "madvise.py", "    if end > vma.end or", "    if",
           "advised_beyond_one_vma"),
    # On several CPUs
    Change("the VMA stays locked until the advice is done", "madvise.py",
           "                error = _advise_range(system, vma, start, end, advice)\n",
           "                lock_of(vma).up_read()\n"
           "                return min(_advise_range(system, vma, start, end, advice), 0)\n",
           "referenced / munmap of all in the child + madvise in the child"),
    Change("who restores waits for who moves 2 MiB", "migrate.py", "    waits = True\n", "",
           "restore / mremap of 2 MiB away"),
    Change("a leaf that moved is unlocked", "huge_pmd.py", "    leaf.lock.unlock()\n    page_table.pmd_lock.unlock()",
           "    page_table.pmd_lock.unlock()", "referenced / mremap of 2 MiB away"),
    Change("who comes second finds the first one's entry", "huge_pmd.py",
           "page_table.install(start >> LEAF_SHIFT, leaf) is leaf",
           "page_table.install(start >> LEAF_SHIFT, leaf) is not None", "write to 2 MiB / read of 2 MiB"),
    Change("the last entry frees the folio", "huge_pmd.py", "    if left == 0:\n        system.try_free(head)\n", "",
           "referenced / munmap of 2 MiB + exit with the child's 2 MiB"),
)  # fmt: skip

# The table of what finds a bug in each rule that 7.3 brought (docs/kernels/7.3.md, section 8).
PAGE = (ROOT / "docs/kernels/7.3.md").read_text()
IDS = re.findall(r"^\| ([a-z0-9-]+) \|", PAGE.partition("\n## 6.")[2].partition("\n## 7.")[0], re.M)
BROKEN = PAGE.partition("\n## 8.")[2]


def test_each_rule_of_7_3_has_a_row_that_says_what_finds_a_bug_in_it() -> None:
    rows = dict(re.findall(r"^\| ([a-z0-9-]+) \| ([^|]*) \|", BROKEN.partition("| rule |")[0], re.M))
    assert [name for name in rows if name != "---"] == IDS
    known = {field.name for field in fields(Profile)} | vars(mutants).keys() | vars(race_mutants).keys()
    known |= {mutant.name for mutant in WEAKENED}
    for bugs in rows.values():
        assert known.issuperset(re.findall(r"`([^`]+)`", bugs))


def test_each_change_has_a_row() -> None:
    assert re.findall(r"^\| ([^|`]*) \| `mm/(\S+)` \| `([^`]*)` \|$", BROKEN, re.M) == [
        (change.rule, change.path, change.by) for change in CHANGES
    ]


# In a process of its own: does the history, or the scenario, contradict the sources there?
PROBE = """
import sys
sys.path[:0] = sys.argv[1:3]
if " / " in sys.argv[3]:
    from rmaplab.check.race import run
    from rmaplab.rmap.anon_vma import AnonVmaRmap
    found = run(sys.argv[3], AnonVmaRmap, limit=20_000).broken
else:
    from pathlib import Path
    from kernel.fixture_files import model_differs
    try:
        found = model_differs(Path(sys.argv[2], "kernel/fixtures/7.3", sys.argv[3] + ".txt"))
    except Exception as error:
        found = [repr(error)]
print(*found)
"""


def contradiction(sources: Path, by: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROBE, str(sources), str(ROOT / "tests"), by],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources without what was compiled."""
    copy = tmp_path_factory.mktemp("sources")
    shutil.copytree(SOURCES, copy / "rmaplab", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return copy


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.rule)
def test_without_a_rule_a_kernel_is_contradicted_or_a_race_lost(change: Change, copy: Path) -> None:
    path = copy / "rmaplab/mm" / change.path
    text = path.read_text()
    assert text.count(change.old) == 1
    path.write_text(text.replace(change.old, change.new))
    try:
        assert contradiction(copy, change.by)
    finally:
        path.write_text(text)


@pytest.mark.parametrize("by", sorted({change.by for change in CHANGES if " / " in change.by}))
def test_with_all_rules_nothing_is_found(by: str, copy: Path) -> None:
    assert contradiction(copy, by) == ""
