# SPDX-License-Identifier: GPL-2.0-or-later
"""Operations and changes in words.

One sentence per event: who does what, where, and with which result.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from rmaplab.explore.parts import (
    MACHINE,
    AnyPart,
    Area,
    Cpu,
    Folded,
    Folio,
    Holding,
    Note,
    Part,
    Process,
    Space,
    State,
)
from rmaplab.mm import abi
from rmaplab.mm.vma import PAGE_SHIFT
from rmaplab.printable import plural
from rmaplab.trace.events import FAULT_WRITE, Event

_ADVICE: Final = {
    value: name for name, value in vars(abi).items() if name.startswith("MADV_") and isinstance(value, int)
}
_UNTOLD: Final = frozenset(["x", "y", "born", "why", "walks", "apart", "areas"])


def amount(length: int) -> str:
    """Bytes as pages."""
    return plural((length + 4095) >> PAGE_SHIFT, "page")


def prot(value: int) -> str:
    return "".join(letter if value & bit else "-" for letter, bit in (("r", 1), ("w", 2), ("x", 4)))


def tell(event: Event, names: Sequence[str] = ()) -> str:
    """The event in a sentence."""
    who = f"Process {event.pid}"
    told = f"{who} {_what(event, names)}"
    if event.result < 0:
        told += f", which fails: {errno.errorcode.get(-event.result, -event.result)}"
    return told + "."


def _what(event: Event, names: Sequence[str]) -> str:
    addr, size = f"{event.addr:#x}", amount(event.length)
    match event.op:
        case "exec":
            return f"executes a program: a fresh address space, with a stack of {size} at {addr}"
        case "fork" if event.flags & abi.CLONE_VM:
            return f"starts process {event.pid2} in its own address space"
        case "fork":
            return f"forks process {event.pid2}"
        case "exit":
            return "exits"
        case "mmap":
            private = event.flags & abi.MAP_TYPE == abi.MAP_PRIVATE
            what = "" if event.file < 0 else f" of file {event.file} from page {event.offset >> PAGE_SHIFT}"
            kind = f"{'private' if private else 'shared'}{'' if event.file >= 0 else ' anonymous'}"
            at = f" at {event.result:#x}" if event.result >= 0 else ""
            return f"maps {size}{what}{at} ({kind}, {prot(event.prot)})"
        case "munmap":
            return f"unmaps {size} at {addr}"
        case "mprotect":
            return f"sets the rights of {size} at {addr} to {prot(event.prot)}"
        case "madvise":
            return f"gives advice {_ADVICE.get(event.flags, event.flags)} for {size} at {addr}"
        case "mlock":
            return f"locks {size} at {addr}"
        case "munlock":
            return f"unlocks {size} at {addr}"
        case "mlockall":
            return "locks all its memory"
        case "munlockall":
            return "unlocks all its memory"
        case "mremap" if event.result == event.addr and event.length2 != event.length:
            return f"resizes {size} at {addr} to {amount(event.length2)}"
        case "mremap":
            to = f" to {event.result:#x}" if event.result >= 0 else ""
            grown = "" if event.length2 == event.length else f", making them {amount(event.length2)}"
            kept = " (the source stays mapped)" if event.flags & abi.MREMAP_DONTUNMAP else ""
            return f"moves {size} from {addr}{to}{grown}{kept}"
        case "brk":
            return f"sets the end of its heap to {addr}"
        case "name":
            name = names[event.file] if 0 <= event.file < len(names) else ""
            return f"names {size} at {addr} “{name}”"
        case "fault":
            how = "writes to" if event.flags & FAULT_WRITE else "reads"
            return f"{how} {size} at {addr}"
        case "swap_out":
            return f"has {size} at {addr} reclaimed, to swap"
        case "migrate":
            return f"has {size} at {addr} migrated to other frames"
        case "referenced":
            return (
                f"asks whether {size} at {addr} were used"
                if event.length > 4096
                else f"asks whether {size} at {addr} was used"
            )
        case "ksm":
            return f"has its page at {addr} and process {event.pid2}'s at {event.addr2:#x} merged by KSM"
        case "uffd_move":
            return f"moves {size} from {event.addr2:#x} to {addr} with UFFDIO_MOVE"
        case "mark":
            return f"reaches checkpoint {event.offset}"
    return f"does {event.op} for {size} at {addr}"


def tell_many(events: Sequence[Event]) -> str:
    """Several events of one step: their number by operation, and the most active process."""
    counts = Counter(event.op for event in events).most_common()
    pids = [pid for pid, _ in Counter(event.pid for event in events).most_common()]
    who = f"process {pids[0]}" if len(pids) == 1 else f"{len(pids):,} processes, {pids[0]} most"
    return f"{plural(len(events), 'event')} of {who}: {', '.join(f'{op} {count:,}' for op, count in counts)}."


def title(key: str, part: AnyPart) -> str:
    """The name of a part in a sentence."""
    if isinstance(part, Process):
        return f"process {part.pid}"
    if isinstance(part, Space):
        return f"address space {part.id}"
    if isinstance(part, Folded):
        return f"the folded children of process {part.parent}"
    if isinstance(part, Area):
        return f"V{part.id}"
    if isinstance(part, Folio):
        return f"folio {part.pfn}"
    if isinstance(part, Holding):
        return "the design"
    if isinstance(part, Cpu):
        return f"CPU {part.number}"
    if part.count > 1:
        return f"{part.count:,} more"
    if part.kind == "anon_vma_chain":
        return f"AVC of {part.label} in {key.partition('/')[2].partition('.')[0]}"
    if part.kind == "record":
        return f"record {part.label} of {part.group.rpartition(' ')[2]}"
    if part.kind in ("chain", "shift"):
        return f"{part.kind} of {part.label}"
    return f"{part.kind} {part.label}"


def notes(before: State, after: State, whole: Callable[[str], bool]) -> list[Note]:
    """What was created, changed and freed between two states, in words.

    whole: whether all objects of the sort that a key belongs to are in both states.  Of others nobody can tell
           here whether they were born or only came into view.
    """
    found: list[Note] = []
    for key in before.keys() - after.keys():
        part = before[key]
        if not isinstance(part, Space | Folded | Cpu) and whole(key):
            found.append(Note(_slot(key), "gone", key, f"{title(key, part)} is gone"))
    for key, part in after.items():
        if isinstance(part, Space | Folded | Holding | Cpu):
            continue
        old = before.get(key)
        if old is None:
            if whole(key):
                found.append(Note(_slot(key), "born", key, f"{title(key, part)}{_where(part)} is new"))
        else:
            changes = _changes(old, part)
            if changes:
                found.append(Note(_slot(key), "changed", key, f"{title(key, part)}: {'; '.join(changes)}"))
    order = {"born": 0, "changed": 1, "gone": 2}
    found.sort(key=lambda note: (note.slot, order[note.what], _sortable(note.key)))
    return found


def sorts_in_part(state: State) -> set[str]:
    """The sorts of objects (by `sort_of`) of which some are folded in `state`."""
    found: set[str] = set()
    for key, part in state.items():
        if isinstance(part, Folded):
            found |= {"p", "V", "f"}
        elif isinstance(part, Space) and any(id < 0 for id in part.areas):
            found |= {"V", "f"}
        elif isinstance(part, Area) and (
            part.more or any(cell.count > 1 for cell in part.cells if cell.head)
        ):
            found.add("f")
        elif isinstance(part, Part) and part.count > 1:
            found.add(sort_of(key))
    if "V" in found:  # what is folded there has chains and shifts that are not drawn either
        found |= {sort_of(key) for key in state if "/" in key}
    return found


def sort_of(key: str) -> str:
    """A letter for what belongs to no design, the slot for what belongs to one."""
    slot, slash, _ = key.partition("/")
    return f"{slot}/" if slash else key[:1]


def _sortable(key: str) -> tuple[str, int, str]:
    head = key.rpartition("/")[2]
    letters = head.rstrip("0123456789")
    return (letters, len(head), key)


def _slot(key: str) -> int:
    slot, slash, _ = key.partition("/")
    return int(slot) if slash else MACHINE


def _where(part: AnyPart) -> str:
    if isinstance(part, Area):
        return f" ({part.start:#x}, {plural((part.end - part.start) >> PAGE_SHIFT, 'page')})"
    if isinstance(part, Part) and part.facts:
        return f" ({', '.join(f'{name} {value}' for name, value in part.facts)})"
    return ""


def _changes(old: AnyPart, new: AnyPart) -> list[str]:
    if isinstance(old, Part) and isinstance(new, Part):
        before = dict(old.facts)
        changes = [
            f"{name} {before.get(name, 'nothing')} → {value}"
            for name, value in new.facts
            if before.get(name) != value
        ]
        if old.above != new.above:
            changes.append(f"now below {_short(new.above)}" if new.above else "now the top")
        elif old.side != new.side:
            changes.append("changed sides")
        return changes
    changes = []
    for name in new.__struct_fields__:
        a, b = getattr(old, name), getattr(new, name)
        if a == b or name in _UNTOLD:
            continue
        if name == "cells":
            changes.append("its page table changed")
        elif name == "anchors":
            changes += [
                f"points to {_short(y) or 'nothing'} instead of {_short(x) or 'nothing'}"
                for x, y in zip(a, b, strict=True)
                if x != y
            ]
        elif name in ("start", "end"):
            changes.append(f"{name} {a:#x} → {b:#x}")
        elif name == "pgoff":
            changes.append(f"page offset {a:#x} → {b:#x}")
        elif name == "prepared":
            changes.append("has had a page now" if b else "has no pages any more")
        else:
            changes.append(f"{name} {a} → {b}")
    return changes


def _short(key: str) -> str:
    name = key.partition("/")[2]
    return name.rpartition(".")[2]
