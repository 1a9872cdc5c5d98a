# SPDX-License-Identifier: GPL-2.0-or-later
"""Creation, copying and end of address spaces: execve, fork, exit.

Models kernel/fork.c dup_mmap(), fs/exec.c bprm_mm_init() and setup_arg_pages() with relocate_vma_down() of mm/mmap.c,
and mm/mmap.c exit_mmap().

fork calls the designs for each VMA before its entries are copied, and lists the VMAs whose entries to copy.
Neighbours form one run, since there are no entries between them.
"""

from __future__ import annotations

from typing import Final

from rmaplab.mm import memory
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.locking import write_unlock
from rmaplab.mm.merge import change_range
from rmaplab.mm.mmap import grow_down
from rmaplab.mm.mremap import move_page_tables
from rmaplab.mm.system import System
from rmaplab.mm.vma import (
    MM,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    TASK_SIZE,
    VM_ACCOUNT,
    VM_DONTCOPY,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_LOCKONFAULT,
    VM_MAYBE_GUARD,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYWRITE,
    VM_NOHUGEPAGE,
    VM_READ,
    VM_SHARED,
    VM_STACK_INCOMPLETE_SETUP,
    VM_WIPEONFORK,
    VM_WRITE,
    VMA,
)

# Without VM_SOFTDIRTY: setup_arg_pages() gives the stack its rights with a set of flags that lacks it.
_STACK_FLAGS: Final = VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC | VM_GROWSDOWN | VM_ACCOUNT
_ARGUMENT_PAGES: Final = 2  # pages of arguments and environment that a small program is started with


def new_address_space(system: System, stack_start: int, stack_len: int, stack_offset: int) -> MM:
    """The address space of a program that is being exec'd, with a temporary stack that holds its arguments and ends at
    `stack_offset + stack_len` (bprm_mm_init(), copy_strings()).  See set_up_stack()."""
    end = stack_start + stack_len
    old_end = stack_offset + stack_len
    for what, value in (("start", stack_start), ("length", stack_len), ("page offset", stack_offset)):
        if value & ~PAGE_MASK or value < 0:
            raise HistoryError(f"the stack's {what} {value:#x} is not a multiple of {PAGE_SIZE}")
    if stack_len == 0 or old_end > TASK_SIZE or end > old_end or stack_start < PAGE_SIZE:
        raise HistoryError(
            f"a stack at {stack_start:#x}, {stack_len:#x} bytes long, cannot have come from"
            f" {stack_offset:#x}: it moves down, and fits below {TASK_SIZE:#x}"
        )
    mm = system.new_mm()
    for design in system.designs:
        design.mm_created(mm)
    arguments = min(_ARGUMENT_PAGES << PAGE_SHIFT, stack_len)
    start = old_end - arguments
    stack = system.new_vma(mm, start, old_end, start >> PAGE_SHIFT, _STACK_FLAGS | VM_STACK_INCOMPLETE_SETUP, None)
    mm.mmap_lock.down_write()
    mm.tree.insert(stack)
    write_unlock(mm)
    mm.mmap_lock.down_read()  # get_arg_page()
    memory.fault_vma(system, stack, start, arguments >> PAGE_SHIFT, True)
    mm.mmap_lock.up_read()
    return mm


def set_up_stack(system: System, mm: MM, stack_start: int, stack_len: int, start_brk: int) -> None:
    """The stack moves down until it ends at `stack_start + stack_len`, and grows to its length: from then on its page
    offset is not its address (setup_arg_pages()).  Until it has moved, migration leaves it alone: entries move without
    the locks that its walks rely on.
    """
    mm.mmap_lock.down_write()
    stack = mm.tree.to_list()[0]
    old_end = stack.end
    end = stack_start + stack_len
    if old_end != end:
        _relocate_down(system, stack, old_end - end)
    stack.flags &= ~VM_STACK_INCOMPLETE_SETUP
    if stack.start > stack_start:
        error = grow_down(system, stack, stack_start)
        if error:
            raise HistoryError(f"the stack cannot grow down to {stack_start:#x}")
    write_unlock(mm)
    mm.total_vm = stack_len >> PAGE_SHIFT
    mm.start_stack = end
    mm.start_brk = start_brk
    mm.brk = start_brk


def _relocate_down(system: System, vma: VMA, shift: int) -> None:
    """relocate_vma_down(): cover old and new place, move the entries, keep the new place."""
    old_start = vma.start
    old_end = vma.end
    change_range(system, vma, old_start - shift, old_end)
    move_page_tables(system, vma, old_start, vma, old_start - shift, old_end - old_start, False)
    change_range(system, vma, old_start - shift, old_end - shift)
    system.free_page_tables(vma.mm, vma.end, old_end, False)


def fork_address_space(system: System, parent: MM) -> MM:
    """A copy of `parent` (dup_mm(), dup_mmap())."""
    child = system.new_mm()
    child.mmap_base = parent.mmap_base
    child.start_brk = parent.start_brk
    child.brk = parent.brk
    child.start_stack = parent.start_stack
    child.def_flags = parent.def_flags & VM_NOHUGEPAGE
    child.total_vm = parent.total_vm
    designs = system.designs
    parent.mmap_lock.down_write()
    child.mmap_lock.down_write()
    for design in designs:
        design.mm_forked(parent, child)
    copies: list[VMA] = []
    runs: list[list[VMA]] = []  # VMAs whose entries are to be copied; no other lies between those of one run
    run: list[VMA] = []  # the last of them, to which a neighbour is added
    for vma in parent.tree.to_list():
        system.keep_faults_out(vma)
        if vma.flags & VM_DONTCOPY:
            child.total_vm -= vma.nr_pages
            run = []
            continue
        copy = system.copy_vma(child, vma, vma.start, vma.end, vma.pgoff, vma.anon_pgoff)
        copies.append(copy)
        if vma.prepared and not vma.flags & VM_WIPEONFORK:
            for design in designs:
                design.vma_forked(vma, copy)
            copy.prepared = True
        copy.flags &= ~(VM_LOCKED | VM_LOCKONFAULT)
        if system.scheduler is not None:
            # Others may look: each VMA is in its tree before its entries are copied, one VMA at a time.  To Linux
            # that is no store of its own: it copied the whole tree before (__mt_dup()).
            system.tree_changes(child, copy.start, copy.end, 0)
            child.tree.insert(copy)
            if _needs_copy(vma):  # asks for the parent's anon_vma again
                _copy_entries(system, parent, child, [vma])
        elif _needs_copy(vma):
            if not run:
                runs.append(run)
            run.append(vma)
        elif run:
            run = []
    system.vmas_copied.count += len(copies)
    if system.scheduler is None:
        child.tree.fill(copies)
    for run in runs:
        _copy_entries(system, parent, child, run)
    for design in designs:
        design.mm_fork_end(parent, child)
    system.flush_tlb(parent)  # at the end of dup_mmap()
    write_unlock(child)
    write_unlock(parent)
    return child


def _needs_copy(vma: VMA) -> bool:
    """vma_needs_copy(): what has neither anonymous pages nor guard markers can be faulted in again"""
    return not vma.flags & VM_WIPEONFORK and (vma.prepared or vma.flags & VM_MAYBE_GUARD != 0)


def _copy_entries(system: System, parent: MM, child: MM, run: list[VMA]) -> None:
    """copy_page_range() for VMAs next to each other"""
    if any(vma.flags & VM_SHARED for vma in run):
        for vma in run:
            if vma.flags & VM_SHARED:
                memory.copy_shared(parent, child, vma.start, vma.end)
            else:
                memory.copy_vmas(system, parent, child, [vma])
    else:
        memory.copy_vmas(system, parent, child, run)


def exit_address_space(system: System, mm: MM) -> None:
    """The last user of `mm` is gone (exit_mmap())."""
    mm.mmap_lock.down_read()
    zapped = memory.zap(system, mm, 0, TASK_SIZE)
    mm.mmap_lock.up_read()
    mm.mmap_lock.down_write()
    vmas = mm.tree.to_list()
    for vma in vmas:
        system.tell_removed(vma)
    system.free_page_tables(mm, 0, TASK_SIZE, zapped)
    system.tree_changes(mm, 0, TASK_SIZE)
    mm.tree.fill([])
    for vma in vmas:
        system.free_vma(vma)
    mm.alive = False
    write_unlock(mm)
    for design in system.designs:
        design.mm_gone(mm)
    system.free_mm(mm)
