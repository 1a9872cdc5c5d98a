# SPDX-License-Identifier: GPL-2.0-or-later
"""A profile says what its kernel does, and the nearest one is found for a kernel that has none."""

import mmap
import os
import pickle
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from rmaplab.mm.profile import PROFILES, REFERENCE, Profile, profile_for
from rmaplab.sync.work import PAGE_SIZE, slab_order

RELEASE = os.uname().release
HOST, HOST_IS_KNOWN = profile_for(RELEASE)
HOST_WAS_READ = re.match(re.escape(HOST.release) + r"(?!\d)", RELEASE) is not None


def slabinfo() -> dict[str, tuple[int, int, int]]:
    """Object size, objects per slab, pages per slab, by cache."""
    try:
        text = Path("/proc/slabinfo").read_text()
    except OSError as why:
        pytest.skip(f"/proc/slabinfo cannot be read: {why}")
    fields = [line.split() for line in text.splitlines()[2:]]
    return {row[0]: (int(row[3]), int(row[4]), int(row[5])) for row in fields}


def present_cpus() -> int:
    ranges = Path("/sys/devices/system/cpu/present").read_text().strip().split(",")
    ends = [part.split("-") for part in ranges]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


def test_profiles_differ_in_their_rules_as_the_kernels_do() -> None:
    def rules(profile: Profile) -> dict[str, bool]:
        values = {field.name: getattr(profile, field.name) for field in fields(profile)}
        return {name: value for name, value in values.items() if isinstance(value, bool)}

    base = rules(PROFILES[REFERENCE])
    changed = {
        name: {rule for rule, value in rules(profile).items() if value != base[rule]}
        for name, profile in PROFILES.items()
    }
    assert changed["7.2"] == {"anon_pgoff", "huge_lazyfree"}
    since_7_0 = {"clone_reverses", "sticky_flags", "swap_uncaches", "dofork_special", "remap_reserve"}
    since_7_0 |= {"moves_under_anon_vma"}
    assert changed["6.18"] == changed["7.2"] | since_7_0 | {"dontunmap_apart", "migrated_partly"}
    since_6_13 = {"guard_regions", "mm_ids", "relaxed_anon_merge", "move_many", "madvise_locks_vma", "batches"}
    since_6_13 |= {"huge_zero_replaced", "reclaims_tables"}
    assert changed["6.12"] == changed["7.2"] - {"huge_lazyfree"} | since_7_0 | since_6_13
    assert changed["6.1"] == changed["6.12"] | {
        "upper_first", "close_forbids_merge", "unaccount_unprepared", "stack_nohugepage", "thp_placement",
        "swap_in_writable", "clean_writable", "split_to_zero", "migrated_partly", "ksm_unshares", "unmerges_none",
        "populates_past_holes", "droppable", "migration_splits", "mthp", "huge_writable", "huge_split_dirty",
        "realigns_moves", "large_swap_in",
    }  # fmt: skip


def test_a_rule_is_written_once_with_its_source_beside_it() -> None:
    written = (Path(__file__).parents[2] / "src/rmaplab/mm/profile.py").read_text()
    for field in fields(Profile):
        doc = re.search(rf'^    {field.name}: .*\n    """(?s:(.*?))"""$', written, re.M)
        assert doc is not None, f"{field.name} says nothing"
        assert field.name in ("name", "release", "sizes") or "mm/" in doc[1] or "include/" in doc[1], field.name


def test_a_profile_cannot_be_changed_but_replaced() -> None:
    with pytest.raises((AttributeError, TypeError)):
        PROFILES[REFERENCE].droppable = False  # type: ignore[misc]
    other = replace(PROFILES[REFERENCE], droppable=False)
    assert other.sizes is PROFILES[REFERENCE].sizes and PROFILES[REFERENCE].droppable and not other.droppable


def test_a_virtual_memory_area_costs_its_lock_too() -> None:
    def cost(name: str) -> int:
        sizes = PROFILES[name].sizes
        return sizes["vm_area_struct"] + sizes.get("vma_lock", 0)

    assert (cost("6.1"), cost("6.12"), cost("6.18")) == (152, 216, 192)


@pytest.mark.parametrize(
    ("release", "name", "exact"),
    [
        ("6.12.117+deb12-cloud-amd64", "6.12", True),
        ("6.1.0-56-cloud-amd64", "6.1", True),
        ("6.18.44", "6.18", True),
        ("6.18", "6.18", True),
        ("6.10.3", "6.12", False),
        ("6.6.9", "6.1", False),
        ("6.15.0", "6.12", False),  # as near to 6.18: the older one has no rule too many
        ("6.16.1", "6.18", False),
        ("7.2.0-1-amd64", "7.2", True),
        ("7.1.9", "7.2", False),
        ("5.15.0-91-generic", "6.1", False),
        ("4.19.0", "6.1", False),
        ("", REFERENCE, False),
        ("FreeBSD", REFERENCE, False),
    ],
)
def test_the_nearest_profile_is_chosen(release: str, name: str, exact: bool) -> None:
    profile, is_exact = profile_for(release)
    assert (profile.name, is_exact) == (name, exact)


def test_object_sizes_are_those_of_the_running_kernel() -> None:
    if not HOST_WAS_READ:
        pytest.skip(f"no profile was read from this kernel ({RELEASE}): sizes cannot be compared")
    seen = slabinfo()
    expected = {name: size for name, size in HOST.sizes.items() if name in seen}
    assert {name: seen[name][0] for name in expected} == expected
    assert "anon_vma" in seen and "vm_area_struct" in seen


def test_all_slabs_of_the_running_kernel_are_packed_as_the_ledger_packs_them() -> None:
    numbers = tuple(int(number) for number in re.findall(r"\d+", RELEASE)[:2])
    if numbers < (6, 12):
        pytest.skip(f"calculate_order() of {RELEASE} goes about it in another way")
    if re.search(r"\bsl[ua]b_", Path("/proc/cmdline").read_text()):
        pytest.skip("the kernel was booted with options that change its slabs")
    cpus = present_cpus()
    if cpus == 1:
        pytest.skip("with one CPU present, the kernel goes by how many there could be")
    min_objects = 4 * (cpus.bit_length() + 1)
    for name, (size, objects, pages) in slabinfo().items():
        order = slab_order(size, min_objects)
        assert (1 << order, (PAGE_SIZE << order) // size) == (pages, objects), name


def test_a_slab_may_waste_more_than_a_quarter_rather_than_hold_one_object() -> None:
    assert slab_order(11000) == 3  # two objects in 32 KiB; an order less holds one, with 5 KiB to spare


_PROLOGUE = """
import ctypes, re
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_long
libc.mmap.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_int]
BASE, PAGE = 0x100000000000, 4096
RW, RWX = 3, 7
def map(page, pages, prot=RW, flags=0):
    return libc.mmap(BASE + page * PAGE, pages * PAGE, prot, 0x100022 | flags, -1, 0)
def touch(page): ctypes.memset(BASE + page * PAGE, 1, 1)
def protect(page, pages, prot): return libc.mprotect(BASE + page * PAGE, pages * PAGE, prot)
def move(page, pages, to, flags=3):
    return libc.mremap(BASE + page * PAGE, pages * PAGE, pages * PAGE, flags, BASE + to * PAGE)
def advise(page, pages, advice): return libc.madvise(BASE + page * PAGE, pages * PAGE, advice)
def show(*flags):
    vmas, text = [], ""
    for line in open("/proc/self/smaps"):
        place = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\\S+)", line)
        if place:
            start, end = int(place[1], 16), int(place[2], 16)
            inside = BASE <= start < BASE + (1 << 30)
            text = f"{(start - BASE) // PAGE}+{(end - start) // PAGE} {place[3]}"
        elif line.startswith("VmFlags:") and inside:
            vmas.append(" ".join([text, *(flag for flag in flags if flag in line.split())]))
    print(", ".join(vmas))
"""


def vmas(body: str) -> str:
    """What `body`, which maps pages in a process of its own, prints: with show(), VMAs as "first page+pages
    rights", and those of the flags asked for that they have."""
    run = subprocess.run([sys.executable, "-c", _PROLOGUE + body], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


needs_known_kernel = pytest.mark.skipif(
    not HOST_IS_KNOWN or mmap.PAGESIZE != PAGE_SIZE, reason=f"there is no profile of this kernel ({RELEASE})"
)


@needs_known_kernel
def test_a_prepared_range_merges_with_an_unprepared_neighbour() -> None:
    seen = vmas("map(0, 4); map(4, 4, RWX); touch(4); protect(4, 4, RW); show()")
    assert seen == ("0+8 rw-p" if HOST.relaxed_anon_merge else "0+4 rw-p, 4+4 rw-p")


@needs_known_kernel
def test_a_prepared_range_that_a_child_inherited_does_not() -> None:
    seen = vmas("""
import os
map(0, 4); map(4, 4, RWX); touch(4)
if os.fork(): os.wait()
else: protect(4, 4, RW); show()
""")
    assert seen == "0+4 rw-p, 4+4 rw-p"


@needs_known_kernel
def test_an_unprepared_range_merges_with_a_prepared_neighbour() -> None:
    assert vmas("map(0, 4); touch(0); map(4, 4, RWX); protect(4, 4, RW); show()") == "0+8 rw-p"


@needs_known_kernel
def test_a_mapping_between_two_that_cannot_join_goes_to_one_side() -> None:
    seen = vmas("map(0, 4); map(8, 4); touch(0); touch(8); map(4, 4); show()")
    assert seen == ("0+4 rw-p, 4+8 rw-p" if HOST.upper_first else "0+8 rw-p, 8+4 rw-p")


@needs_known_kernel
def test_a_mapping_between_an_unprepared_and_a_prepared_one_may_join_both() -> None:
    seen = vmas("map(0, 4); map(8, 4); touch(8); map(4, 4); show()")
    assert seen == ("0+4 rw-p, 4+8 rw-p" if HOST.upper_first else "0+12 rw-p")


@needs_known_kernel
def test_taking_the_right_to_write_from_an_unprepared_range() -> None:
    seen = vmas("map(0, 8); protect(4, 4, 0); show('ac')")
    assert seen == ("0+4 rw-p ac, 4+4 ---p" if HOST.unaccount_unprepared else "0+4 rw-p ac, 4+4 ---p ac")
    assert vmas("map(0, 8); touch(0); protect(4, 4, 0); show('ac')") == "0+4 rw-p ac, 4+4 ---p ac"


@needs_known_kernel
def test_a_stack_does_not_merge_with_what_is_beside_it() -> None:
    seen = vmas("map(0, 4, RW, 0x20000); map(4, 4); show('nh')")
    assert seen == ("0+4 rw-p nh, 4+4 rw-p" if HOST.stack_nohugepage else "0+8 rw-p")


@needs_known_kernel
def test_many_are_moved_at_once() -> None:
    seen = vmas("map(0, 4); map(4, 4, 1); map(10, 2); map(108, 1, 1); move(0, 12, 100); show()")
    if HOST.move_many:
        assert seen == "100+4 rw-p, 104+5 r--p, 110+2 rw-p"  # page 108 lies in the gap, and stayed
    else:
        assert seen == "0+4 rw-p, 4+4 r--p, 10+2 rw-p"  # it failed, after the target was unmapped
    assert vmas("map(1, 4); print(move(0, 5, 100), ctypes.get_errno())") == "-1 14"


@pytest.mark.skipif(not HOST_WAS_READ, reason=f"{RELEASE} may have the fix, or not: stable releases got it")
def test_the_source_of_a_move_without_unmapping() -> None:
    seen = vmas("map(0, 4); move(0, 4, 4, 7); show()")
    assert seen == ("0+4 rw-p, 4+4 rw-p" if HOST.dontunmap_apart else "0+8 rw-p")
    seen = vmas("map(4, 4); touch(4); move(4, 4, 100); move(100, 4, 200, 7); map(104, 4); show()")
    assert seen == (
        "100+8 rw-p, 200+4 rw-p" if HOST.dontunmap_apart else "100+4 rw-p, 104+4 rw-p, 200+4 rw-p"
    )


@needs_known_kernel
def test_large_anonymous_mappings_are_placed_for_huge_pages() -> None:
    placed = vmas("""
for length in (4 << 20, 4096, 4 << 20, (2 << 20) + 4096, (2 << 20) + 4096):
    print(libc.mmap(0, length, RW, 0x22, -1, 0) % (2 << 20) == 0, end=" ")
""").split()
    assert (placed[0] == placed[2] == "True") == HOST.thp_placement
    assert placed[3:] != ["True", "True"]  # of no multiple of 2 MiB, they lie as close as they can


@needs_known_kernel
def test_a_guard_region_prepares_its_vma() -> None:
    seen = vmas("map(4, 4); print(advise(4, 1, 102)); move(4, 4, 100); map(104, 4); show()")
    assert seen == ("0\n100+4 rw-p, 104+4 rw-p" if HOST.guard_regions else "-1\n100+8 rw-p")


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_goes_from_process_to_process(name: str) -> None:
    again = pickle.loads(pickle.dumps(replace(PROFILES[name], anon_pgoff=True)))
    assert vars_of(again) == {**vars_of(PROFILES[name]), "anon_pgoff": True}


def vars_of(profile: Profile) -> dict[str, object]:
    return {field.name: getattr(profile, field.name) for field in fields(profile)}
