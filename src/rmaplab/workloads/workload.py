# SPDX-License-Identifier: GPL-2.0-or-later
"""What a built-in history is, and where things are in it.

A workload is a record of parameters that can tell its history in the words of trace/script.py.  Addresses are chosen
by the workload and mapped with MAP_FIXED_NOREPLACE, so a history says the same on every machine.

Invariants
- The same parameters and the same seed give the same events.
- Every event's result is what Linux returns: a replay that differs is a bug of the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from rmaplab.trace.events import Event
from rmaplab.trace.history import FileEntry, Header, History
from rmaplab.trace.script import PAGE, Process, Script

MAX_PROCESSES: Final = 10_000
MAX_PAGES: Final = 10_000_000

# Where things are, in every workload.
AREA: Final = 0x7F00_0000_0000  # the mappings under study
PRIVATE: Final = 0x7E00_0000_0000  # what a child maps for itself
AWAY: Final = 0x7D00_0000_0000  # where a move goes
ZONE: Final = 0xF0_0000_0000  # bytes of address space in each of them

Count = Annotated[int, msgspec.Meta(ge=0)]
Processes = Annotated[int, msgspec.Meta(ge=1, le=MAX_PROCESSES)]
Pages = Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGES)]
Percent = Annotated[int, msgspec.Meta(ge=0, le=100)]
Flag = Annotated[int, msgspec.Meta(ge=0, le=1)]
PerCpu = Annotated[int, msgspec.Meta(ge=0, le=MAX_PROCESSES, title="per CPU")]  # 0: one for each CPU


def says(what: str) -> msgspec.Meta:
    """What a parameter is, in a few words."""
    return msgspec.Meta(description=what)


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A family of histories; its fields are the parameters (`says`: what each is), the class docstring says what
    happens."""

    seed: int = 1

    def __post_init__(self) -> None:
        if self.span() > ZONE:
            raise ValueError(
                f"the mappings take {self.span()} bytes, more than the {ZONE} set aside for them"
            )

    def span(self) -> int:
        """Bytes of address space from AREA on that the mappings take."""
        return 0

    def files(self) -> list[str]:
        """Names of the files that are mapped; an event's `file` counts into them."""
        return []

    @classmethod
    def parameters(cls) -> dict[str, str]:
        """What each parameter is, in a few words; all have a `seed` besides."""
        kinds = {field.name: msgspec.inspect.type_info(field.type) for field in msgspec.structs.fields(cls)}
        return {
            name: (kind.extra_json_schema or {})["description"]
            for name, kind in kinds.items()
            if isinstance(kind, msgspec.inspect.Metadata)
        }

    def history(self) -> History:
        """The history, with a header that says which workload it is."""
        parameters = " ".join(f"{name}={getattr(self, name)}" for name in self.__struct_fields__)
        name = type(self).__name__.lower()
        files = [FileEntry(number, name=file) for number, file in enumerate(self.files())]
        header = Header(recorder=f"workload {name}", command=f"{name} {parameters}", files=files)
        return History(header, self.events())

    def events(self) -> list[Event]:
        """What happens, from the first execve on."""
        script = Script()
        self.tell(script)
        return script.events

    def tell(self, script: Script) -> None:
        """Write down in `script` what happens."""
        raise NotImplementedError(f"{type(self).__name__} does not say what happens")


def places(vmas: int, nr_pages: int) -> range:
    """Addresses of VMAs of `nr_pages` pages each, one page apart, so that none of them merge."""
    step = (nr_pages + 1) * PAGE
    return range(AREA, AREA + vmas * step, step)


def warm(process: Process, areas: Sequence[int], nr_pages: int) -> None:
    """Map `nr_pages` pages at each of `areas`, and write to all of them."""
    for area in areas:
        process.warm(area, nr_pages * PAGE)


def family(first: Process, count: int, related: bool, areas: Sequence[int], nr_pages: int) -> list[Process]:
    """`count` processes that begin with the same warm memory: forked from `first`, or each by itself."""
    members: list[Process] = []
    for _ in range(count):
        if related:
            members.append(first.fork())
        else:
            alone = Process(first.world, first.world.new_pid())
            alone.exec()
            warm(alone, areas, nr_pages)
            members.append(alone)
    return members
