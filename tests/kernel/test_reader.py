# SPDX-License-Identifier: GPL-2.0-or-later
"""What is read of a kernel is consistent, on every kernel that can be fetched, whether or not the model has its rules.

A structure that is overwritten is found in what is read afterwards (make test-kernel).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel.hands import write_word
from rmaplab.check.histories import header
from rmaplab.kernel import columns, setup
from rmaplab.kernel.aimed import history, setting
from rmaplab.kernel.consistency import problems
from rmaplab.kernel.driver import Driver
from rmaplab.kernel.errors import KernelUnavailable
from rmaplab.kernel.fixtures import possible_names
from rmaplab.kernel.identity import release_of
from rmaplab.kernel.isomorphism import belongs
from rmaplab.kernel.lockstep import Witness
from rmaplab.kernel.memory import BadAddress
from rmaplab.kernel.snapshot import Snapshot, Vma
from rmaplab.kernel.versions import VERSIONS

pytestmark = pytest.mark.skipif(
    not os.environ.get("RMAPLAB_KERNEL"), reason="boots kernels: make test-kernel, or RMAPLAB_KERNEL=1"
)
KERNELS = VERSIONS


def driver(witness: Witness, name: str) -> Driver:
    files = {entry.id: entry for entry in header().files}
    return Driver(witness.guest, files, witness.look, witness.scans, setting(name))


def end(witness: Witness, driver: Driver) -> None:
    for pid in driver.pids.values():
        witness.forget(pid)
    driver.end()


def test_what_is_read_after_each_step_of_each_aimed_history_is_consistent(witness: Witness) -> None:
    seen = dict.fromkeys(("pages", "large folios", "KSM's pages", "cached in swap", "two offsets"), 0)
    for name in possible_names(witness.has_large_folios):
        driving = driver(witness, name)
        try:
            for number, event in enumerate(history(name)):
                if event.op not in driving.known():
                    continue
                gone = driving.pids.get(event.pid) if event.op == "exit" else None
                driving.do(event)
                if gone is not None:
                    witness.forget(gone)
                snapshot = witness.look(driving.pids.values())
                assert problems(snapshot) == [], f"{name}, step {number}"
                seen["pages"] += len(snapshot.pages)
                seen["large folios"] += any(page.order for page in snapshot.pages.values())
                seen["KSM's pages"] += any(page.ksm for page in snapshot.pages.values())
                seen["cached in swap"] += any(page.swapcache for page in snapshot.pages.values())
                seen["two offsets"] += any(vma.pgoff != vma.anon_pgoff for vma in snapshot.vmas.values())
        finally:
            end(witness, driving)
    print(seen)
    if not witness.has_large_folios:
        del seen["large folios"]
    if not snapshot.two_offsets:
        assert seen.pop("two offsets") == 0
    assert all(seen.values())


class TestPoked:
    """A structure that is overwritten is found by what is read afterwards."""

    @pytest.fixture
    def family(self, witness: Witness) -> Iterator[Driver]:
        """Five generations: chains of five links, and pages that they share."""
        yield from self.done(witness, "five_generations")

    @pytest.fixture
    def large(self, witness: Witness) -> Iterator[Driver]:
        """Large folios that two processes map."""
        if not witness.has_large_folios:
            pytest.skip("no large folios that a history here is big enough for")
        yield from self.done(witness, "large_folio_not_swapped_out_while_shared", 5)

    def done(self, witness: Witness, name: str, steps: int | None = None) -> Iterator[Driver]:
        driving = driver(witness, name)
        for event in history(name)[:steps]:
            driving.do(event)
        yield driving
        end(witness, driving)

    def poked(self, witness: Witness, family: Driver, address: Callable[[Snapshot], int], change: int) -> list[str]:
        """What is found while the word at `address` has other bits."""
        pids = family.pids.values()
        before = witness.look(pids)
        assert problems(before) == []
        at = address(before)
        with witness.guest.stopped():
            value = witness.memory.word(at)
            write_word(witness.memory, at, value ^ change)
            try:
                return problems(witness.reader.read(witness.tasks(pids)))
            except BadAddress as error:
                return [str(error)]
            finally:
                write_word(witness.memory, at, value)

    @pytest.mark.parametrize("field", ["root", "parent"])
    def test_anon_vma(self, field: str, witness: Witness, family: Driver) -> None:
        offset = witness.reader.offset("anon_vma", field)
        assert self.poked(witness, family, lambda s: _child(s) + offset, 0x40)

    @pytest.mark.parametrize("field", ["vm_pgoff", "__vm_anon_pgoff_lo", "__vm_anon_pgoff_hi"])
    def test_page_offset(self, field: str, witness: Witness, family: Driver) -> None:
        offset = _of_vma(witness, field)
        assert self.poked(witness, family, lambda s: _vma(s).address + offset, 1)

    @pytest.mark.parametrize("field", ["vm_refcnt", "detached"])
    def test_attached(self, field: str, witness: Witness, family: Driver) -> None:
        offset = _of_vma(witness, field)
        assert self.poked(witness, family, lambda s: _vma(s).address + offset, 1)

    def test_tree_pointer(self, witness: Witness, family: Driver) -> None:
        offset = witness.reader.offset("avc", "rb.rb_left")
        assert self.poked(witness, family, lambda s: _inner_avc(s) + offset, -1)

    @pytest.mark.parametrize(("field", "change"), [("mapcount", 1), ("index", 2), ("head", 1), ("mapping", 0x40)])
    def test_page(self, field: str, change: int, witness: Witness, family: Driver) -> None:
        pages = witness.reader.pages
        assert self.poked(witness, family, lambda s: pages.address(min(s.pages)) + pages.offset[field], change)

    def test_tail_page(self, witness: Witness, large: Driver) -> None:
        pages = witness.reader.pages
        assert self.poked(witness, large, lambda s: pages.address(_large(s) + 2) + pages.offset["head"], 0x80)

    @pytest.mark.parametrize("field", ["mapped", "mm_ids", "mm_mapcounts"])
    def test_counts_of_a_large_folio(self, field: str, witness: Witness, large: Driver) -> None:
        pages = witness.reader.pages
        if field not in pages.tail_offset:
            pytest.skip(f"this kernel's folios do not count {field}")
        offset = pages.tail_offset[field]
        assert self.poked(witness, large, lambda s: pages.address(_large(s) + 1) + offset, 1)

    def test_shared_bit_of_a_large_folio(self, witness: Witness, large: Driver) -> None:
        pages = witness.reader.pages
        if not pages.counts_mms:
            pytest.skip("this kernel's folios do not say whether they are shared")
        offset = pages.tail_offset["mm_ids"]
        assert self.poked(witness, large, lambda s: pages.address(_large(s) + 1) + offset, 1 << 63)

    def test_columns_say_the_same(self, witness: Witness, family: Driver) -> None:
        """What objects show is what blocks of memory show."""
        with witness.guest.stopped():
            snapshot = witness.reader.read(witness.tasks(family.pids.values()))
            assert problems(snapshot, columns.read(witness.memory, snapshot)) == []


def _of_vma(witness: Witness, field: str) -> int:
    try:
        return witness.reader.offset("vma", field)
    except KeyError:
        pytest.skip(f"this kernel's VMAs have no {field}")


def _child(snapshot: Snapshot) -> int:
    return next(a.address for a in snapshot.anon_vmas.values() if a.root != a.address)


def _vma(snapshot: Snapshot) -> Vma:
    return max(filter(belongs, snapshot.vmas.values()), key=lambda vma: len(vma.chain))


def _inner_avc(snapshot: Snapshot) -> int:
    return next(node.avc for a in snapshot.anon_vmas.values() for node in a.tree if node.left)


def _large(snapshot: Snapshot) -> int:
    """The first page of a large folio."""
    return next(page.head for page in snapshot.pages.values() if page.order)


def test_a_vmlinux_of_another_kernel_is_said_to_be_that(witness: Witness) -> None:
    other = next((kernel for v in VERSIONS if v != _version(witness) and (kernel := setup.installed(v))), None)
    if other is None:
        pytest.skip("no other kernel in the cache")
    mine = setup.need(_version(witness))
    with pytest.raises(KernelUnavailable, match=r"^.*vmlinux is not the vmlinux of the kernel that was booted.*\.$"):
        Witness(setup.Kernel(mine.image, other.vmlinux, mine.modules))


def test_a_kernel_without_a_module_that_is_needed(witness: Witness, tmp_path: Path) -> None:
    mine = setup.need(_version(witness))
    with pytest.raises(KernelUnavailable, match=r"lacks qemu_fw_cfg, .* give --modules a tree"):
        Witness(setup.Kernel(mine.image, mine.vmlinux, tmp_path))


def _version(witness: Witness) -> str:
    return next(v for v in VERSIONS if release_of(witness.memory.program).startswith(f"{v}."))
