# SPDX-License-Identifier: GPL-2.0-or-later
"""The text of `strace -f`, turned into a history.

strace shows system calls and the ends of tasks, but neither faults nor what exec maps itself: the stack is
taken to be where an unrandomised one would be, and the rest is inferred (Reducer).  Lines may begin with a
process number ("1234" or "[pid 1234]", or nothing for the first process), then a time in any of strace's
forms (-t, -tt, -ttt, -r) or none; a call may be split by `<unfinished ...>` and `resumed`.

A call takes effect at the line where it returned, but munmap at the line where it was entered (see timeline.py),
and the creation of a task at the latest before that task's first line.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from typing import Final

import msgspec

from rmaplab.mm import abi
from rmaplab.trace.calls import CALLS
from rmaplab.trace.reduce import CLONE_THREAD, PR_SET_VMA, SHM_EXEC, SHM_RDONLY, Backing, Reducer
from rmaplab.trace.timeline import CLONE_NEWPID

__all__ = ["STRACE_OPTIONS", "StraceText"]

# What else it takes to understand them: how large a System V segment is, and when a task ends.
_TRACED: Final = (*CALLS, "shmget", "exit", "exit_group")
# attach: not -q, which does not say either what runs in 32-bit mode.  -y: paths of descriptors.  pidns: also the number
# that lines begin with, where a clone in another PID namespace returned that of the namespace.  A question mark: never
# mind if this kernel or strace does not know the call.
STRACE_OPTIONS: Final = (
    "-f", "--quiet=attach", "-ttt", "-y", "--decode-pids=pidns",
    "-e", "trace=" + ",".join("?" + name for name in _TRACED),
)  # fmt: skip

_LINE: Final = re.compile(
    r"(?:\[pid\s+(?P<bracketed>\d+)\] |(?P<bare>\d+) +)?"
    r"(?:(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>[\d.]+)|(?P<number>\d+\.\d+))? *"
    r"(?:\(\+ *[\d.]+\) *)?(?P<rest>.*)"
)
_ATTACHED: Final = re.compile(r"strace: Process (\d+) attached")
_DONE: Final = re.compile(
    r"(\w+)\((.*)\)\s*= (0x[0-9a-f]+|-?\d+|\?)(?:<[^>]*>)?"
    r"(?: /\* (\d+) in strace's PID NS \*/)?(?: (E\w+))?"
)
_UNFINISHED: Final = re.compile(r"(\w+)\((.*?)\s*<unfinished \.\.\.>$")
_RESUMED: Final = re.compile(r"<\.\.\. (\w+) resumed>\s*(.*)$")
_SUPERSEDED: Final = re.compile(r"\+\+\+ superseded by execve in pid (\d+) \+\+\+")
_OTHER_MODE: Final = re.compile(r"\[ Process PID=\d+ runs in (?:32 bit|x32) mode")
_DESCRIPTOR: Final = re.compile(r"(-?\d+)<(.*)>(?:\(deleted\))?$")
_FLAGS: Final = re.compile(r"flags=([\w|]+)")

_SYMBOLS: Final[dict[str, int]] = {
    **{
        name: value
        for name, value in vars(abi).items()
        if name.startswith(("PROT_", "MAP_", "MREMAP_", "MADV_", "MLOCK_", "MCL_", "CLONE_"))
    },
    "CLONE_NEWPID": CLONE_NEWPID,
    "CLONE_THREAD": CLONE_THREAD,
    "MAP_FILE": 0,
    "MAP_HUGETLB": 0x40000,
    "MAP_SYNC": 0x80000,
    "NULL": 0,
    "PR_SET_VMA": PR_SET_VMA,
    "PR_SET_VMA_ANON_NAME": 0,
    "SHM_EXEC": SHM_EXEC,
    "SHM_RDONLY": SHM_RDONLY,
}
_FREES_AT_ENTRY: Final = frozenset(("munmap", "shmdt"))
_STARTS: Final = frozenset(("clone", "clone3", "fork", "vfork"))
_OPENS: Final = frozenset(("open", "openat", "openat2", "creat", "memfd_create"))
_STACK: Final = (0x7FFFFFFDE000, 0x21000, 0x7FFFFFFDE000)
_STACK_32: Final = (0xFFFDD000, 0x21000, 0xFFFDD000)
_FIRST: Final = 1  # stands for the number of the first process where its lines do not tell it


class _Act(msgspec.Struct):
    """A call that returned, or the end of a task."""

    tid: int
    time: int
    name: str
    args: list[str]
    result: int = 0


class _Life(msgspec.Struct):
    """A task between its first line and its last: numbers are used again."""

    first: int  # its first line
    told: bool = False  # the call that made it has returned to its parent
    over: bool = False  # "+++ exited" was read


class StraceText:
    """Reads the lines of `strace -f`, and tells a Reducer.

    pid_namespaces: that were made, once it has told
    """

    def __init__(self) -> None:
        self.pid_namespaces = 0
        self._acts: list[tuple[tuple[int, int], _Act]] = []  # by line at which it took effect
        self._line = 0
        self._time = 0
        self._entered: dict[int, tuple[int, str]] = {}  # by tid: line, text so far
        self._lives: dict[int, _Life] = {}  # by tid, the present one
        self._children: set[int] = set()
        self._ended: set[int] = set()
        self._sizes: dict[int, int] = {}  # of System V segments
        self._opened: dict[tuple[int, int], str] = {}  # by task and descriptor: what it refers to

    def read(self, lines: Iterable[str]) -> None:
        """Take in `lines`; those that are about something else are passed over."""
        day = 0
        before = -1
        cut = ""
        for line in lines:
            self._line += 1
            attached = _ATTACHED.search(line)
            if attached is not None:
                self._children.add(int(attached[1]))
                cut = line[: attached.start()]  # it comes in the middle of the line that made the process
                continue
            match = _LINE.match(cut + line.rstrip("\n"))
            cut = ""
            if match is None:
                continue
            if match["hours"] is not None:
                time = (
                    _nanoseconds(match["seconds"])
                    + (int(match["hours"]) * 60 + int(match["minutes"])) * 60 * 10**9
                )
                if time < before:  # past midnight
                    day += 24 * 3600 * 10**9
                before = time
                self._time = day + time
            elif match["number"] is not None:
                number = _nanoseconds(match["number"])
                self._time = number if number > 10**17 else self._time + number  # -ttt, or -r
            else:
                self._time += 1000
            tid = int(match["bracketed"] or match["bare"] or self._only())
            if match["bracketed"] is not None and tid not in self._children:
                tid = _FIRST
            self._lives.setdefault(tid, _Life(self._line))
            self._text(tid, match["rest"])

    def _only(self) -> int:
        """The task that a line without a number is about: strace leaves it out where there is only one."""
        if _FIRST not in self._ended:
            return _FIRST
        return next((tid for tid in self._lives if tid not in self._ended), _FIRST)

    def tell(self, reducer: Reducer) -> None:
        """Tell `reducer` all of it, in the order in which it took effect."""
        self._acts.sort(key=lambda act: act[0])
        for _, act in self._acts:
            reducer.at(act.time, -1)
            self._tell(reducer, act)

    def _text(self, tid: int, text: str) -> None:
        if text.startswith("+++"):
            superseded = _SUPERSEDED.match(text)
            if superseded is None:
                self._end(tid, "exit")
                self._lives[tid].over = True
                self._forget(tid)
            elif int(superseded[1]) in self._entered:
                self._entered[tid] = self._entered.pop(int(superseded[1]))
            return
        if _OTHER_MODE.match(text):
            self._acts.append(((self._line, 1), _Act(tid, self._time, "32 bit", [])))
            return
        unfinished = _UNFINISHED.match(text)
        if unfinished is not None:
            if unfinished[1] in ("exit", "exit_group"):
                self._end(tid, unfinished[1])
            self._entered[tid] = (self._line, f"{unfinished[1]}({unfinished[2]}")
            return
        entry = self._line
        resumed = _RESUMED.match(text)
        if resumed is not None:
            entry, before = self._entered.pop(tid, (self._line, f"{resumed[1]}("))
            text = before + resumed[2]
        done = _DONE.match(text)
        if done is None:
            return
        name, arguments, value, outside, error = done.groups()
        if name in ("exit", "exit_group"):
            self._end(tid, name)
            return
        if value == "?":
            return  # the task ended before the call did
        result = -getattr(errno, error, errno.EINVAL) if error else int(outside or value, 0)
        args = [arguments] if name in _STARTS else _split(arguments)
        key = (entry if name in _FREES_AT_ENTRY else self._line, 1)
        if name in _STARTS and result > 0:
            self._children.add(result)
            life = self._lives.setdefault(result, _Life(self._line + 1))
            key = (min(life.first, self._line), 0)
            life.told = True
            self._forget(result)
        if name == "mmap" and len(args) == 6:
            self._name_file(tid, args)
        if name in _OPENS and result >= 0:
            self._opened[tid, result] = f"opened {self._line}"
        if name == "shmget" and result >= 0:
            self._sizes[result] = _value(args[1])
        self._acts.append((key, _Act(tid, self._time, name, args, result)))

    def _end(self, tid: int, name: str) -> None:
        self._ended.add(tid)
        self._acts.append(((self._line, 1), _Act(tid, self._time, name, [])))

    def _forget(self, tid: int) -> None:
        """A life that is over still has its first line asked for if the parent has not heard of it."""
        if self._lives[tid].told and self._lives[tid].over:
            del self._lives[tid]

    def _name_file(self, tid: int, args: list[str]) -> None:
        """Where strace shows no path (-y), tell files apart by the descriptor and when it was opened."""
        if _DESCRIPTOR.match(args[4]) is None and _value(args[4]) >= 0:
            fd = _value(args[4])
            args[4] = f"{fd}<?{self._opened.get((tid, fd), f'descriptor {fd}')}>"

    def _tell(self, reducer: Reducer, act: _Act) -> None:
        name, args, tid = act.name, act.args, act.tid
        if name == "exit":
            reducer.gone(tid)
        elif name == "exit_group":
            reducer.process_gone(tid)
        elif name == "32 bit":
            reducer.executed(tid, tid, *_STACK_32)
        elif name in _STARTS:
            flags = _FLAGS.search(args[0])
            value = _value(flags[1]) if flags is not None else 0
            if name == "vfork":
                value = abi.CLONE_VM | abi.CLONE_VFORK
            if act.result > 0:
                self.pid_namespaces += value & CLONE_NEWPID != 0
                reducer.started(tid, act.result, value)
        elif name == "unshare":
            self.pid_namespaces += act.result == 0 and _value(args[0]) & CLONE_NEWPID != 0
        elif name in ("execve", "execveat"):
            if act.result == 0:
                reducer.executed(tid, tid, *_STACK)
                reducer.named(tid, args[0].strip('"').rsplit("/", 1)[-1][:15])
        elif name == "mmap":
            descriptor = _DESCRIPTOR.match(args[4]) if len(args) == 6 else None
            backing = None if descriptor is None else Backing(descriptor[2], descriptor[2].removeprefix("?"))
            reducer.call(tid, name, [_value(arg) for arg in args], act.result, backing)
        elif name == "shmat":
            segment = _value(args[0])
            reducer.call(
                tid, name, [_value(arg) for arg in args], act.result, length=self._sizes.get(segment, 1)
            )
        elif name == "prctl":
            label = args[4].strip('"') if len(args) > 4 and args[4].startswith('"') else ""
            reducer.call(tid, name, [_value(arg) for arg in args[:4]], act.result, label=label)
        else:
            reducer.call(tid, name, [_value(arg) for arg in args], act.result)


def _nanoseconds(seconds: str) -> int:
    whole, _, fraction = seconds.partition(".")
    return int(whole) * 10**9 + int(fraction.ljust(9, "0")[:9])


def _split(arguments: str) -> list[str]:
    """Split at the commas that are not within quotes or brackets."""
    parts: list[str] = []
    depth = 0
    quoted = False
    start = 0
    for i, letter in enumerate(arguments):
        if letter == '"' and (i == 0 or arguments[i - 1] != "\\"):
            quoted = not quoted
        elif quoted:
            continue
        elif letter in "([{<":
            depth += 1
        elif letter in ")]}>":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(arguments[start:i].strip())
            start = i + 1
    parts.append(arguments[start:].strip())
    return parts


def _value(argument: str) -> int:
    """What strace's words for numbers and flags stand for; 0 for those that decide nothing."""
    descriptor = _DESCRIPTOR.match(argument)
    if descriptor is not None:
        return int(descriptor[1])
    value = 0
    for word in argument.split(" ", 1)[0].split("|"):
        try:
            value |= int(word, 8 if word[:1] == "0" and word[1:].isdigit() else 0)
        except ValueError:
            value |= _SYMBOLS.get(word, 0)
    return value
