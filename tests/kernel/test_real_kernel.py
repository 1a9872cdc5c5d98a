# SPDX-License-Identifier: GPL-2.0-or-later
"""The model against kernels that run (make test-kernel).

RMAPLAB_KERNEL_STEPS: random steps on 7.3 (default 3000); at most 500 of them on each other kernel
RMAPLAB_KERNEL_SEED:  seed of the first random history
RMAPLAB_REQUIRE_KERNEL=1: a kernel that is not there is a failure, not a reason to skip
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernel.fixture_files import places, without_chance
from kernel.hands import read_file
from rmaplab.check import mutants
from rmaplab.check.histories import header
from rmaplab.commands.kernel import explained
from rmaplab.kernel import setup
from rmaplab.kernel.aimed import history, setting
from rmaplab.kernel.consistency import problems
from rmaplab.kernel.coverage import Coverage
from rmaplab.kernel.driver import Driver
from rmaplab.kernel.fixtures import answers, possible_names
from rmaplab.kernel.guest import FILL, KSM, THP
from rmaplab.kernel.identity import sizes_of
from rmaplab.kernel.importer import UNPLACED, Reading, everyone
from rmaplab.kernel.isomorphism import belongs
from rmaplab.kernel.lockstep import Lockstep, Random, Witness, minimal, random_histories, replay
from rmaplab.kernel.snapshot import Reader
from rmaplab.kernel.versions import VERSIONS
from rmaplab.mm import abi
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE, Profile
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import VM_DONTEXPAND, VM_EXEC, VM_IO
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.sync.work import slab_order
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.history import History, read_history, write_history

pytestmark = pytest.mark.skipif(
    not os.environ.get("RMAPLAB_KERNEL"), reason="boots kernels: make test-kernel, or RMAPLAB_KERNEL=1"
)
KERNELS = VERSIONS

FIXTURES = Path(__file__).parent / "fixtures"
STEPS = int(os.environ.get("RMAPLAB_KERNEL_STEPS", "3000"))
SEED = int(os.environ.get("RMAPLAB_KERNEL_SEED", "1"))
PATIENCE = 600.0  # seconds for what comes late, on however slow a machine


CACHES = {
    "vm_area_struct": "vm_area_cachep", "anon_vma": "anon_vma_cachep", "anon_vma_chain": "anon_vma_chain_cachep",
}  # fmt: skip


def attempts() -> Iterator[None]:
    """Again and again, until somebody is content or PATIENCE is at its end; in between the guest goes on."""
    end = time.monotonic() + PATIENCE
    while True:
        yield
        if time.monotonic() > end:
            return
        time.sleep(0.5)  # for what a timer frees in the guest, which stands still while it is looked at


def test_aimed_histories_have_the_answers_that_are_kept_and_reach_every_case(witness: Witness) -> None:
    coverage = Coverage()
    for name, text, disagreement in answers(witness, coverage):
        path = FIXTURES / witness.profile.name / f"{name}.txt"
        if disagreement is not None and not path.exists():
            continue  # a rule that the machine lacks: tests/kernel/test_answers.py says which
        assert disagreement is None, f"{name}: {disagreement.difference}"
        known = path.read_text() if path.exists() else text
        if places(known) != places(text):
            continue
        if os.environ.get("RMAPLAB_KERNEL_WRITE"):
            path.write_text(known if without_chance(known) == without_chance(text) else text)
        assert without_chance(path.read_text()) == without_chance(text), name
    for case, count in sorted(coverage.reached.items()):
        print(f"{count:6} {case}")
    assert coverage.missing(witness.has_large_folios) == []


def test_a_guest_that_goes_on_from_a_kept_state_has_random_numbers_of_its_own(witness: Witness) -> None:
    kernel = setup.need(witness.profile.name)
    stacks = set()
    for _ in range(2):
        with Witness(kernel) as other:  # `witness` has kept its state, or gone on from one
            assert "Linux version" not in other.guest.console()
            _, pid = other.guest.spawn()
            stacks.add(other.look([pid]).by_pid[pid].vmas[-1].start)
    assert len(stacks) == 2


def test_random_histories_agree(witness: Witness) -> None:
    steps = STEPS if witness.profile.name == REFERENCE else min(STEPS, 500)
    started = time.monotonic()
    found, done = random_histories(witness, SEED, steps, print)
    assert found is None, f"{found.difference}\n{found.event}"
    print(f"{done} steps, {(time.monotonic() - started) / done * 1000:.1f} ms each")


def test_the_vdso_may_be_inherited_again_where_the_profile_says_so(witness: Witness) -> None:
    slot, pid = witness.guest.spawn()
    mm = witness.look([pid]).by_pid[pid]
    vdso = next(vma for vma in mm.vmas if vma.flags & (VM_DONTEXPAND | VM_IO | VM_EXEC) == VM_DONTEXPAND | VM_EXEC)
    results = [
        witness.guest.syscall(slot, "madvise", vdso.start, vdso.end - vdso.start, advice)
        for advice in (abi.MADV_DONTFORK, abi.MADV_DOFORK)
    ]
    witness.guest.exit(slot, pid)
    assert results == [0, -abi.EINVAL if witness.profile.dofork_special else 0]


def test_what_is_read_is_consistent(witness: Witness) -> None:
    history = Random(witness, SEED + 1)
    for found in history.steps(200):
        assert found is None
        assert history.lockstep.snapshot is not None
        assert problems(history.lockstep.snapshot) == []
    history.end()


class StalePgoff(Machine):
    """A VMA that is moved before its first fault keeps its page offset."""

    def __init__(self, profile: Profile, *arguments: Any, **named: Any) -> None:
        super().__init__(replace(profile, fresh_pgoff=False), *arguments, **named)


# Not here: MapcountLate, since what is mapped nowhere and not freed cannot be seen from page tables.
@pytest.mark.kernels("7.3", "6.12", "6.1")
@pytest.mark.parametrize(
    "broken",
    [
        mutants.SplitWithoutClone, mutants.JoinWithoutClone, mutants.CopyWithoutClone, mutants.ChildNotLinked,
        mutants.InheritedPointerKept, mutants.NeighbourNotSingular, mutants.KeysLeftBehind, mutants.KeyTooShort,
        mutants.NotUnlinked, mutants.SwappedInAsOwn, mutants.NotTakenOver, mutants.AnchorNotMigrated,
        mutants.DegreeConflated, mutants.NeverTakenOver, mutants.KsmPlaceForgotten, mutants.SlotNotPut, StalePgoff,
        mutants.MovedIntoUnprepared,
    ],
)  # fmt: skip
def test_a_bug_that_is_put_back_is_found(witness: Witness, broken: type[ReverseMap] | type[Machine]) -> None:
    if broken is mutants.MovedIntoUnprepared and not witness.profile.relaxed_anon_merge:
        pytest.skip("no merge of this kernel moves pages into an unprepared VMA")
    design = broken if issubclass(broken, ReverseMap) else AnonVmaRmap
    machine = broken if issubclass(broken, Machine) else Machine
    for name in possible_names(witness.has_large_folios):
        lockstep = Lockstep(witness, None, design, None, setting(name), machine)
        try:
            for number, event in enumerate(history(name)):
                if lockstep.possible(event) and lockstep.step(event) is not None:
                    print(f"found by {name}, step {number}")
                    return
        finally:
            lockstep.end()
    for seed in range(12):
        random = Random(witness, seed, design=design, machine=machine)
        try:
            for number, found in enumerate(random.steps(400)):
                if found is not None:
                    print(f"found by seed {seed}, step {number}")
                    return
        finally:
            random.end()
    pytest.fail("all aimed histories, 4800 random steps, and no difference")


def test_a_difference_is_made_short_explained_and_kept(witness: Witness, tmp_path: Path) -> None:
    design = mutants.SplitWithoutClone
    random = Random(witness, SEED + 2, design=design, ops=("mmap", "munmap", "mprotect", "fault", "fork", "mremap"))
    *_, found = random.steps(400)
    random.end()
    assert found is not None, "400 steps without a split of a child's VMA"
    short = minimal(witness, found, design, seconds=PATIENCE)
    assert len(short.requested) <= min(10, len(found.requested))
    screen = explained(short)
    print(screen)
    assert len(screen.splitlines()) <= 40
    assert "kernel:" in screen and "model:" in screen and str(short.event) in screen
    write_history(tmp_path / "short.parquet", History(header(), short.requested))
    again = list(read_history(tmp_path / "short.parquet"))
    seen = replay(witness, again, design)
    assert seen is not None and seen.difference.what == short.difference.what
    assert replay(witness, again) is None


def test_a_history_is_done_again(witness: Witness) -> None:
    history = Random(witness, SEED + 3)
    assert all(found is None for found in history.steps(100))
    history.end()
    assert replay(witness, history.lockstep.requested) is None


def let_ksm_forget(witness: Witness) -> None:
    """KSM refers to anon_vmas of processes that are long gone, until ksmd comes by; but it stands still now, and
    would leave them there for good.  So let it give back all that it has (mm/ksm.c run_store())."""
    for run in ("2", "0"):
        witness.guest.write_file(f"{KSM}/run", run)


def test_slab_counts_are_those_that_the_model_predicts(witness: Witness) -> None:
    let_ksm_forget(witness)
    # Without KSM, which keeps references to anon_vmas until ksmd comes by.
    ops = sorted(Lockstep(witness).driver.known() - {"ksm"})
    history = Random(witness, SEED + 4, ops=ops)
    assert all(found is None for found in history.steps(200))
    for _ in attempts():  # what goes is freed after a grace period, and by exits that are still at it
        counted, predicted = _slab_counts(witness, history)
        if counted == predicted:
            break
    assert counted == predicted
    history.end()


def _slab_counts(witness: Witness, history: Random) -> tuple[dict[str, int], dict[str, int]]:
    """Live objects of the workers, by type: those in the kernel's slabs, and those of the model."""
    machine = history.lockstep.machine
    with witness.guest.stopped():
        tasks, _ = everyone(witness.memory.program)
        snapshot = Reader(witness.memory, lambda vma: False).read(tasks)
        live = {name: _live(witness, name) for name in CACHES}
    workers = set(history.lockstep.driver.pids.values())
    ours = {
        vma.address for mm in snapshot.mms.values() for vma in mm.vmas if belongs(vma) and workers & set(mm.pids)
    }
    chains = {avc for address in ours for avc in snapshot.vmas[address].chain}
    pools = machine.leader.ledger.pools
    families = {snapshot.avcs[avc].anon_vma for avc in chains}
    families |= {a.parent for a in snapshot.anon_vmas.values() if a.address in families}
    counted = {
        "vm_area_struct": len(live["vm_area_struct"] - (set(snapshot.vmas) - ours)),
        "anon_vma_chain": len(live["anon_vma_chain"] - (set(snapshot.avcs) - chains)),
        "anon_vma": len(live["anon_vma"] - (set(snapshot.anon_vmas) - families)),
    }
    predicted = {
        "vm_area_struct": machine.vma_pool.live,
        "anon_vma_chain": pools["anon_vma_chain"].live,
        "anon_vma": pools["anon_vma"].live,
    }
    return counted, predicted


def _live(witness: Witness, name: str) -> set[int]:
    from drgn.helpers.linux.slab import slab_cache_for_each_allocated_object

    objects = slab_cache_for_each_allocated_object(witness.memory.program[CACHES[name]], f"struct {name}")
    return {obj.value_() for obj in objects}


def test_what_ksm_merged_comes_back_where_no_walk_finds_it(witness: Witness) -> None:
    """docs/findings/ksm-large-swap-in.md"""
    if not witness.has_large_folios:
        pytest.skip("no large folios but those of 2 MiB")
    guest, start = witness.guest, 0x10_0000_0000
    driver = Driver(guest, {}, witness.look, witness.scans)
    try:
        for pid in (1, 2):
            driver.do(Event("exec", pid, 0xF_0000_0000, 3 * 4096, addr2=0x12_0000_0000))
            driver.do(Event("mmap", pid, start, 16 * 4096, prot=3, flags=0x32))
            for page in range(16):
                assert guest.call(driver.slots[pid], FILL, start + page * 4096, 4096, 65 + page) == 0
            driver.do(Event("madvise", pid, start, 16 * 4096, flags=abi.MADV_MERGEABLE))
        driver.do(Event("ksm", 1, pid2=1))
        for _ in attempts():
            driver.do(Event("swap_out", 1, start, 4096))
            entries = witness.look(driver.pids.values()).by_pid[driver.pids[1]].entries
            if all(entries[start + page * 4096].kind == "swap" for page in range(16)):
                break
        slots = [entries[start + page * 4096].number for page in range(16)]
        # Four aligned slots of one cluster: a new cluster may begin anywhere among the pages.
        in_a_row = [[slots[i] + n for n in range(4)] == slots[i : i + 4] for i in range(13)]
        page = next(i for i in range(13) if slots[i] % 4 == 0 and in_a_row[i])
        moved = start + (1 << 20) + -page % 4 * 4096  # so that these pages lie as their slots do
        for pid in (1, 2):
            flags = abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED
            driver.do(Event("mremap", pid, start, 16 * 4096, length2=16 * 4096, addr2=moved, flags=flags))
        touched = moved + page * 4096
        guest.write_file(f"{THP}/hugepages-16kB/enabled", "always")
        for pid in (1, 2):
            driver.do(Event("fault", pid, touched, 4096))
        guest.write_file(f"{THP}/hugepages-16kB/enabled", "never")
        snapshot = witness.look(driver.pids.values())
        first, second = (snapshot.by_pid[driver.pids[pid]] for pid in (1, 2))
        folio = snapshot.pages[second.entries[touched].number]
        vma = next(vma for vma in second.vmas if vma.start <= touched < vma.end)
        found = folio.anon_vma in {snapshot.avcs[avc].anon_vma for avc in vma.chain}
        shared = first.entries[touched].number == second.entries[touched].number
        assert (folio.order, shared, found) == ((2, True, False) if witness.profile.swap_uncaches else (0, False, True))
    finally:
        driver.end()


def test_slab_memory_is_what_slabinfo_says(witness: Witness) -> None:
    """A history that only grows, so that no slab is left in part but the last: all objects of a cache, those of the
    workers as the model counts them and the rest as found, packed as the model packs them."""
    lockstep = Lockstep(witness)
    script = [Event("exec", 1, 0xF_0000_0000, 3 * 4096, addr2=0x12_0000_0000)]
    for i in range(60):
        addr = 0x10_0000_0000 + i * 3 * 4096
        script.append(Event("mmap", 1, addr, 2 * 4096, prot=3, flags=0x32))
        script.append(Event("fault", 1, addr, 4096, flags=FAULT_WRITE))
    script += [Event("fork", 1 + i // 2, pid2=2 + i) for i in range(12)]
    for event in script:
        assert lockstep.step(event) is None
    pools = {**lockstep.machine.leader.ledger.pools, "vm_area_struct": lockstep.machine.vma_pool}
    for _ in attempts():  # what execve() freed goes after a grace period
        rows = {line.split()[0]: line.split() for line in read_file(witness.guest, "/proc/slabinfo").splitlines()[2:]}
        with witness.guest.stopped():
            live = {name: len(_live(witness, name)) for name in CACHES}
        off = {}
        for name in CACHES:
            pages_per_slab = int(rows[name][5])
            pages = int(rows[name][14]) * pages_per_slab
            off[name] = abs(pages - pools[name].slab_pages(live[name])) / pages_per_slab
            print(f"{name}: {live[name]} objects, {pools[name].live} of the workers, {pages} pages, "
                  f"{pools[name].slab_pages(live[name])} predicted")  # fmt: skip
        if max(off.values()) <= 1:
            break
    assert max(off.values()) <= 1, off
    for name in CACHES:
        assert pools[name].live > 500
        assert int(rows[name][3]) == pools[name].size
    lockstep.end()


def test_object_sizes_are_those_of_the_debug_information(witness: Witness) -> None:
    """What the profiles say for these versions is what the kernels say; and in lockstep the kernel is asked."""
    program = witness.memory.program
    assert witness.notes == []
    assert sizes_of(program).items() <= PROFILES[witness.profile.name].sizes.items()
    for name in ("vm_area_struct", "anon_vma_chain", "maple_node"):
        assert witness.profile.sizes[name] == program.type(f"struct {name}").size
    # Behind an object with a constructor and SLAB_TYPESAFE_BY_RCU, the slab's own pointer (mm/slub.c).
    assert witness.profile.sizes["anon_vma"] == program.type("struct anon_vma").size + 8
    # Behind it, masks of CPUs (kernel/fork.c mm_cache_init()).
    assert witness.profile.sizes["mm_struct"] > program.type("struct mm_struct").size


def test_slabs_are_cut_as_the_model_cuts_them(witness: Witness) -> None:
    program = witness.memory.program
    cpus = int(program["nr_cpu_ids"])
    for symbol in CACHES.values():
        cache = program[symbol]
        size, shape = int(cache.size), int(cache.oo.x)
        order = slab_order(size, 4 * (cpus.bit_length() + 1))
        assert (shape >> 16, shape & 0xFFFF) == (order, (4096 << order) // size), symbol


def test_a_state_is_imported_and_walked(witness: Witness) -> None:
    history = Random(witness, SEED + 5)
    assert all(found is None for found in history.steps(300))
    with witness.guest.stopped():
        state = Reading(witness.memory.program, witness.memory).examined()
    history.end()
    print(state.table())
    assert state.problems == []
    assert state.findings[0].entries > 0
    assert {finding.design: finding.missed for finding in state.findings if not finding.holds} == {}
    exact = state.findings[-1]
    assert exact.design == "pte_chain" and exact.places == exact.useful


def test_what_linux_itself_does_not_find_of_ksm_is_told_apart(witness: Witness) -> None:
    """A child's place is all that KSM knows of a page that its parent maps, too."""
    lockstep = Lockstep(witness)
    for event in history("merged_and_found_nowhere"):
        if event.op == "exit":
            break
        assert lockstep.step(event) is None
    with witness.guest.stopped():
        state = Reading(witness.memory.program, witness.memory).examined()
    lockstep.end()
    print(state.table())
    missed = {finding.design: finding.missed for finding in state.findings if finding.missed}
    assert state.unplaced > 0
    assert all(missed[design] == {UNPLACED: state.unplaced} for design in ("anon_vma", "anon_vma_lazy", "cow_context"))
    assert not missed.keys() & {"anonmm", "pte_chain"}
    assert state.holds
