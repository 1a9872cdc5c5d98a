# SPDX-License-Identifier: GPL-2.0-or-later
"""A real kernel's state in the model, and every design's walks over it.

`build` turns a snapshot of all processes into a machine: address spaces, VMAs, page tables and folios as they are;
for `anon_vma` the graph as it is, node by node; for the designs with contexts the state that they would have
had, which the kernel does not hold and which is inferred:

- the tree of contexts from ancestry.  A process whose parent lives says so itself.  A parent that died has
  left its anon_vmas behind, under which those of its children hang: anon_vmas that are parents of one child's
  are taken to be of one dead process.
- the context of a folio from its anon_vma: whose VMAs use it as their own.  Where that is nobody, a dead process.
  An anon_vma that a child took over no longer says whose it was: if page tables show mappings outside the
  taker's subtree, the folio belongs to the nearest common ancestor, and is counted as recovered.
- records from page offsets: a VMA is displaced if its page offset is not its address.

`examine` walks every anonymous page in each design, and holds the places against the page tables.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from rmaplab.check.truth import Truth
from rmaplab.kernel.consistency import problems
from rmaplab.kernel.errors import GuestError, KernelUnavailable
from rmaplab.kernel.identity import profile_of, release_of
from rmaplab.kernel.lockstep import Random, Witness
from rmaplab.kernel.memory import BadAddress, Memory
from rmaplab.kernel.setup import Kernel
from rmaplab.kernel.snapshot import Entry, Mm, Page, Reader, Snapshot, Vma
from rmaplab.mm.machine import Machine, Process
from rmaplab.mm.pagetable import (
    PTE_ANON,
    PTE_EXCLUSIVE,
    PTE_FILE,
    PTE_SHIFT,
    PTE_WRITE,
    PTE_ZERO,
    PageTable,
)
from rmaplab.mm.profile import Profile
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM, PAGE_SHIFT, VMA, File
from rmaplab.rmap.anon_vma import AnonVma, AnonVmaChain, AnonVmaRmap, Family
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.rmap.cow_context_prototype import CowContextPrototypeRmap
from rmaplab.sync.locks import RwSemaphore

DESIGNS: Final[tuple[type[ReverseMap], ...]] = (AnonVmaRmap, CowContextRmap, CowContextPrototypeRmap)


class Ancestry(msgspec.Struct):
    """How the tree of contexts was found.

    living:    address spaces whose parent process still lives
    dead:      address spaces that descend from a process that died, known from anon_vmas alone
    ghosts:    such dead processes
    alone:     address spaces that share nothing with an ancestor
    recovered: folios whose context only page tables could tell
    lost:      folios that address spaces map of which nothing says any more that they are related
    skipped:   pages of KSM, and swap entries: nothing to walk for
    """

    living: int = 0
    dead: int = 0
    ghosts: int = 0
    alone: int = 0
    recovered: int = 0
    lost: int = 0
    skipped: int = 0


class Finding(msgspec.Struct):
    """What one design's walks found in all.

    folios, entries: that there are; missed: entries that no place of a walk accounts for; places: visited;
    useful: places that did map the folio; worst: places of the longest walk; held: live objects by type, and
    held_bytes: what they take in slab pages
    """

    design: str
    folios: int
    entries: int
    missed: int
    places: int
    useful: int
    worst: int
    held: dict[str, int]
    held_bytes: int
    examples: list[str]


class _Importer:
    def __init__(self, snapshot: Snapshot, parents: dict[int, int], profile: Profile) -> None:
        self.snapshot: Final = snapshot
        self.parents: Final = parents  # mm -> mm of the parent process, where that lives
        self.machine: Final = Machine(profile, DESIGNS)
        self.ancestry: Final = Ancestry()
        self.mms: Final[dict[int, MM]] = {}  # kernel address -> MM; dead ones under negative numbers
        self.above: Final[dict[int, int]] = {}  # mm -> mm it was forked from
        self.vmas: Final[dict[int, VMA]] = {}
        self.owner: Final[dict[int, int]] = {}  # anon_vma -> mm whose VMAs use it, or a dead one
        self.pfns: Final[dict[int, int]] = {}  # the kernel's -> ours
        self.numbers: Final[dict[int, int]] = {}  # anon_vma -> the model's number of it
        self.mappers: Final[defaultdict[int, set[int]]] = defaultdict(set)  # pfn -> mms

    def run(self) -> None:
        self._find_ancestry()
        self._make_mms()
        for address, mm in self.snapshot.mms.items():
            self._make_vmas(mm, self.mms[address])
        self._make_families()
        self._make_contexts()
        for address, mm in self.snapshot.mms.items():
            self._make_entries(mm, self.mms[address])
        self._set_contexts()
        for address, mine in self.mms.items():
            if address < 0:
                for design in self.machine.designs:
                    design.mm_gone(mine)
                mine.alive = False

    # Ancestry

    def _find_ancestry(self) -> None:
        anon_vmas = self.snapshot.anon_vmas
        for mm in self.snapshot.mms.values():
            for vma in mm.vmas:
                if vma.anon_vma:
                    self.owner[vma.anon_vma] = mm.address
        ghost_of: dict[int, int] = {}
        for anon_vma in anon_vmas.values():
            if anon_vma.address not in self.owner:
                ghost_of[anon_vma.address] = anon_vma.address

        def find(a: int) -> int:
            while ghost_of[a] != a:
                a = ghost_of[a]
            return a

        above: dict[int, list[int]] = {}  # mm -> anon_vmas that are parents of its own
        for mm in self.snapshot.mms.values():
            own = {vma.anon_vma for vma in mm.vmas if vma.anon_vma}
            above[mm.address] = [
                anon_vmas[a].parent for a in own if anon_vmas[a].root != a and anon_vmas[a].parent not in own
            ]
            dead = [a for a in above[mm.address] if a in ghost_of]
            for other in dead[1:]:
                ghost_of[find(other)] = find(dead[0])
        numbers: dict[int, int] = {}
        for a in ghost_of:
            self.owner[a] = numbers.setdefault(find(a), -1 - len(numbers))
        self.ancestry.ghosts = len(numbers)
        for a, number in numbers.items():
            parent = self.owner[anon_vmas[a].parent]
            if parent != number:
                self.above[number] = parent
        for address, candidates in above.items():
            owners = Counter(self.owner[a] for a in candidates if self.owner[a] != address)
            parent_mm = self.parents.get(address)
            if parent_mm is not None and (parent_mm in owners or not owners):
                if owners:
                    self.above[address] = parent_mm
                    self.ancestry.living += 1
                else:
                    self.ancestry.alone += 1
            elif owners:
                self.above[address] = owners.most_common(1)[0][0]
                self.ancestry.dead += 1
            else:
                self.ancestry.alone += 1
        for address in list(self.above):  # guard against a circle that reuse of an anon_vma may suggest
            seen = {address}
            at = address
            while at in self.above:
                at = self.above[at]
                if at in seen:
                    del self.above[address]
                    break
                seen.add(at)

    def _make_mms(self) -> None:
        waiting = [*self.snapshot.mms, *sorted({owner for owner in self.owner.values() if owner < 0})]
        while waiting:
            later = []
            for address in waiting:
                parent = self.above.get(address)
                if parent is not None and parent not in self.mms:
                    later.append(address)
                    continue
                mine = self.machine.new_mm()
                self.mms[address] = mine
                for design in self.machine.designs:
                    if parent is None:
                        design.mm_created(mine)
                    else:
                        design.mm_forked(self.mms[parent], mine)
                if address > 0:
                    self.machine.mms[mine.id] = mine
                    for pid in self.snapshot.mms[address].pids:
                        self.machine.processes[pid] = Process(pid, mine, 0)
            waiting = later

    # Address spaces

    def _make_vmas(self, mm: Mm, mine: MM) -> None:
        files: dict[int, File] = {}
        for vma in mm.vmas:
            file = files.setdefault(vma.inode, File(vma.inode, "")) if vma.inode else None
            copy = self.machine.new_vma(mine, vma.start, vma.end, vma.pgoff, vma.flags, file)
            mine.tree.insert(copy)
            self.vmas[vma.address] = copy

    def _make_families(self) -> None:
        """The anon_vma graph, as it is."""
        design = cast(AnonVmaRmap, self.machine.designs[0])
        made: dict[int, AnonVma] = {}
        for address in self.snapshot.anon_vmas:
            made[address] = design._new_anon_vma()
        for address, its in self.snapshot.anon_vmas.items():
            mine = made[address]
            mine.family_root = made[its.root]
            mine.parent = made[its.parent]
            mine.refcount = its.refcount
            mine.num_children = its.num_children
            mine.num_active_vmas = its.num_active_vmas
        for mine in made.values():
            if mine.family_root.rwsem is None:
                mine.family_root.rwsem = RwSemaphore(design.lock_class, None)
            mine.rwsem = mine.family_root.rwsem
        links: dict[int, AnonVmaChain] = {}
        for vma in self.snapshot.vmas.values():
            if not vma.anon_vma:
                continue
            copy = self.vmas[vma.address]
            family = Family(made[vma.anon_vma])
            for avc in reversed(vma.chain):
                link = AnonVmaChain(copy, made[self.snapshot.avcs[avc].anon_vma])
                links[avc] = link
                family.chain.append(link)
                design.chain_pool.alloc()
            copy.rmap[design.slot] = family
        for address, its in self.snapshot.anon_vmas.items():
            for node in its.tree:
                link = links[node.avc]
                vma_ = link.vma
                made[address].insert(link, vma_.pgoff, vma_.pgoff + vma_.nr_pages - 1, design.visited)
        self.numbers.update({address: mine.number for address, mine in made.items()})

    def _make_contexts(self) -> None:
        """Records of displaced VMAs, as if each had been forked from itself; the oldest VMA of a family says how
        the file offsets of all relate to their anonymous page offsets."""
        shifts: dict[int, int] = {}
        order = {id(mm): i for i, mm in enumerate(self.mms.values())}  # ancestors first
        prepared = [vma for vma in self.snapshot.vmas.values() if vma.anon_vma]
        for vma in sorted(prepared, key=lambda vma: order[id(self.mms[vma.mm])]):
            copy = self.vmas[vma.address]
            root = self.snapshot.anon_vmas[vma.anon_vma].root
            shift = shifts.setdefault(root, 0 if not vma.inode else (vma.start >> PAGE_SHIFT) - vma.pgoff)
            copy.prepared = True
            for design in self.machine.designs[1:]:
                if isinstance(design, CowContextRmap):
                    copy.rmap[design.slot] = shift
                design.vma_forked(copy, copy)

    # Pages

    def _make_entries(self, mm: Mm, mine: MM) -> None:
        addrs = sorted(mm.entries)
        position = 0
        for vma in mm.vmas:
            copy = self.vmas[vma.address]
            while position < len(addrs) and addrs[position] < vma.end:
                addr = addrs[position]
                self._make_entry(vma, copy, mine.page_table, addr, mm.entries[addr])
                position += 1

    def _make_entry(self, vma: Vma, copy: VMA, table: PageTable, addr: int, entry: Entry) -> None:
        if entry.kind in ("zero", "file"):
            table.set(addr, PTE_ZERO if entry.kind == "zero" else PTE_FILE)
        elif entry.kind != "anon":
            self.ancestry.skipped += 1
        else:
            page = self.snapshot.pages[entry.number]
            if page.ksm or not vma.anon_vma:
                self.ancestry.skipped += 1
                return
            flags = PTE_ANON | (PTE_WRITE if entry.writable else 0) | (PTE_EXCLUSIVE if entry.exclusive else 0)
            pfn = self._pfn(page, copy, addr)
            self.machine.folios.mapcount.m[pfn] += 1
            self.mappers[entry.number].add(vma.mm)
            table.set(addr, pfn << PTE_SHIFT | flags)

    def _pfn(self, page: Page, copy: VMA, addr: int) -> int:
        known = self.pfns.get(page.pfn)
        if known is not None:
            return known
        folios = self.machine.folios
        first = page.index - (page.pfn - page.head)
        nr_pages = 1 << page.order
        head = folios.alloc_large(first, page.order) if page.order else folios.alloc(first)
        self.machine.nr_large += page.order > 0
        for i in range(nr_pages):
            self.pfns[page.head + i] = head + i
        design = cast(AnonVmaRmap, self.machine.designs[0])
        design.anchor.v[head : head + nr_pages] = self.numbers[page.anon_vma]
        distance = page.pfn - page.head
        for other in self.machine.designs[1:]:
            other.folio_mapped(copy, addr - (distance << PAGE_SHIFT), head, nr_pages)
        return self.pfns[page.pfn]

    def _set_contexts(self) -> None:
        done: set[int] = set()
        for number in list(self.mappers):
            page = self.snapshot.pages[number]
            if page.head in done:
                continue
            done.add(page.head)
            mappers = {mm for i in range(1 << page.order) for mm in self.mappers.get(page.head + i, ())}
            owner = self.owner[page.anon_vma]
            ancestor = self._common(owner, mappers)
            if ancestor is None:
                self.ancestry.lost += 1
                ancestor = owner
            elif ancestor != owner:
                self.ancestry.recovered += 1
            mm = self.mms[ancestor]
            pretext = VMA(mm, 0, 0, 0, 0, 0, None)  # only its address space is looked at
            head = self.pfns[page.head]
            for design in self.machine.designs[1:]:
                design.folio_reused(pretext, head, 1 << page.order)

    def _common(self, owner: int, mappers: Iterable[int]) -> int | None:
        """The nearest address space, from `owner` upwards, that all `mappers` descend from; None if none is known."""
        lines = [set(self._line(mm)) for mm in mappers]
        for candidate in self._line(owner):
            if all(candidate in line for line in lines):
                return candidate
        return None

    def _line(self, mm: int) -> list[int]:
        line = [mm]
        while line[-1] in self.above:
            line.append(self.above[line[-1]])
        return line


def build(snapshot: Snapshot, parents: dict[int, int], profile: Profile) -> tuple[Machine, Ancestry]:
    """A machine that holds what `snapshot` does; `parents` has the parent's mm of each mm where that lives."""
    importer = _Importer(snapshot, parents, profile)
    importer.run()
    return importer.machine, importer.ancestry


def examine(machine: Machine) -> list[Finding]:
    """Walk every mapped anonymous folio in each design."""
    findings = []
    for design in machine.designs:
        truth = Truth(machine)
        finding = Finding(design.name, len(truth), 0, 0, 0, 0, 0, {}, 0, [])
        for folio in truth.mapped_folios():
            places = list(design.walk(folio.head))
            missed = folio.unseen(places)
            finding.entries += len(folio.entries)
            finding.missed += len(missed)
            finding.places += len(places)
            finding.useful += sum(folio.mapped_at(place) for place in places)
            finding.worst = max(finding.worst, len(places))
            if missed and len(finding.examples) < 3:
                mm, addr, _ = missed[0]
                finding.examples.append(f"mm {mm.id} address {addr:#x} of folio {folio.head}")
        for pool in design.ledger.pools.values():
            if pool.live:
                finding.held[pool.name] = pool.live
                finding.held_bytes += pool.slab_pages(pool.live) << PAGE_SHIFT
        findings.append(finding)
    return findings


class State(msgspec.Struct):
    """An imported state, examined."""

    release: str
    profile: str
    notes: list[str]
    processes: int
    vmas: int
    problems: list[str]
    ancestry: Ancestry
    findings: list[Finding]

    def table(self) -> str:
        """What there is to say, as text."""
        a, first = self.ancestry, self.findings[0]
        lines = [
            f"{self.release}: {self.processes} address spaces, {self.vmas} VMAs, {first.folios} anonymous folios that"
            f" {first.entries} entries map",
            f"consistency: {len(self.problems)} problems" if self.problems else "consistency: nothing wrong",
            *self.problems[:10],
            f"ancestry: {a.living} have a parent that lives, {a.dead} one that died ({a.ghosts} such), {a.alone}"
            f" share nothing; for {a.recovered} folios only page tables tell the context, for {a.lost} nothing does;"
            f" {a.skipped} entries of swap and KSM",
            f"{'design':24}{'missed':>8}{'places':>10}{'useful':>9}{'worst':>7}{'bytes held':>12}  objects",
        ]
        for f in self.findings:
            held = ", ".join(f"{count} {name}" for name, count in f.held.items())
            useful = f"{100 * f.useful / f.places:.1f} %" if f.places else "-"
            lines.append(f"{f.design:24}{f.missed:8}{f.places:10}{useful:>9}{f.worst:7}{f.held_bytes:12}  {held}")
            lines += [f"  missed, for one: {example}" for example in f.examples]
        return "\n".join(lines)


def examined(program: Any, memory: Memory) -> State:
    """Read everything from a kernel that stands still, and walk it."""
    tasks, parents = everyone(program)
    snapshot = Reader(memory).read(tasks)
    profile, notes = profile_of(program)
    machine, ancestry = build(snapshot, parents, profile)
    return State(
        release_of(program), profile.name, notes, len(snapshot.mms), len(snapshot.vmas), problems(snapshot),
        ancestry, examine(machine),
    )  # fmt: skip


def read_guest(kernel: Kernel, seed: int, steps: int) -> State:
    """A guest of ours, after a random history."""
    with Witness(kernel) as witness:
        for found in Random(witness, seed).steps(steps):
            if found is not None:
                raise GuestError(f"the model is wrong before there is anything to import: {found.difference}")
        with witness.guest.stopped():
            return examined(witness.memory.program, witness.memory)


def read_source(source: str, vmlinux: Path | None) -> State:
    """A kernel that somebody else started, or what is left of one.

    :raises KernelUnavailable: it cannot be read; the message says why
    """
    try:
        import drgn
    except ImportError:
        raise KernelUnavailable("drgn is missing: install rmaplab[kernel].") from None
    program = drgn.Program()
    path = Path(source)
    try:
        if source == "live":
            program.set_kernel()
        elif path.is_socket():
            program.set_qemu_qmp(source)
        elif path.is_file():
            program.set_core_dump(source)
        else:
            raise KernelUnavailable(f"{source} is neither a socket, nor a file, nor 'live', nor 'guest'.")
        program.load_debug_info([str(vmlinux)] if vmlinux is not None else None, default=vmlinux is None)
    except (OSError, ValueError, drgn.MissingDebugInfoError) as error:
        raise KernelUnavailable(f"the kernel behind {source} cannot be read: {str(error).splitlines()[0]}.") from None
    try:
        return examined(program, Memory(program))
    except BadAddress as error:
        raise KernelUnavailable(f"{source} changed while it was read ({error}): stop the guest first.") from None


def everyone(program: Any) -> tuple[list[tuple[int, int]], dict[int, int]]:
    """All tasks that lead a thread group, as (pid, address); and for each address space that of the parent
    process, where that lives and is not process 1, which adopts orphans."""
    from drgn.helpers.linux.pid import for_each_task

    tasks: list[tuple[int, int]] = []
    parents: dict[int, int] = {}
    for task in for_each_task(program):
        mm = task.mm.value_()
        if mm == 0 or task.pid.value_() != task.tgid.value_():
            continue
        tasks.append((task.pid.value_(), task.value_()))
        parent = task.real_parent
        parent_mm = parent.mm.value_()
        if parent_mm and parent_mm != mm and parent.pid.value_() != 1:
            parents[mm] = parent_mm
    return tasks, parents
