# SPDX-License-Identifier: GPL-2.0-or-later
"""Built-in histories: a family a file, parameters with defaults that take a second or two.

>>> workload("aim7", {"children": "3"})
Aim7(seed=1, children=3, pages=1000)
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Final

import msgspec

from rmaplab.errors import CannotRun
from rmaplab.workloads.aim7 import Aim7
from rmaplab.workloads.bgsave import BgSave
from rmaplab.workloads.elf import Elf
from rmaplab.workloads.forkchain import ForkChain
from rmaplab.workloads.ksm import Ksm
from rmaplab.workloads.prefork import Prefork
from rmaplab.workloads.pressure import Pressure
from rmaplab.workloads.reclaim import Reclaim
from rmaplab.workloads.remapper import Remapper
from rmaplab.workloads.storm import Storm
from rmaplab.workloads.will_it_scale import WillItScale
from rmaplab.workloads.workload import Workload
from rmaplab.workloads.zygote import Zygote

__all__ = ["FAMILIES", "Workload", "WorkloadError", "workload"]

FAMILIES: Final[dict[str, type[Workload]]] = {
    "aim7": Aim7,
    "bgsave": BgSave,
    "elf": Elf,
    "forkchain": ForkChain,
    "ksm": Ksm,
    "prefork": Prefork,
    "pressure": Pressure,
    "reclaim": Reclaim,
    "remapper": Remapper,
    "storm": Storm,
    "willitscale": WillItScale,
    "zygote": Zygote,
}


class WorkloadError(CannotRun):
    """There is no such workload, parameter or value; the message says what there is."""


def workload(name: str, values: Mapping[str, object]) -> Workload:
    """The workload `name` with parameters; as text, as the command line has them, or as they are.

    :raises WorkloadError: no such workload, no such parameter, or a value out of range
    """
    family = FAMILIES.get(name)
    if family is None:
        raise WorkloadError(f"there is no workload {name!r}{_hint(name, list(FAMILIES))}")
    known = list(family.__struct_fields__)
    for key in values:
        if key not in known:
            raise WorkloadError(f"{name} has no parameter {key!r}{_hint(key, known)}")
    try:
        return msgspec.convert(dict(values), family, strict=False)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        parameter = where.rstrip("`")
        if parameter in values:
            what = f"{parameter}={values[parameter]} has to be {_range(family, parameter)}"
            meaning = family.parameters().get(parameter, "")
            what += f" ({meaning})" if meaning else ""
        raise WorkloadError(f"{name}: {what}") from None


def _range(family: type[Workload], parameter: str) -> str:
    """The values of a parameter, in words."""
    (field,) = (field for field in msgspec.structs.fields(family) if field.name == parameter)
    kind = msgspec.inspect.type_info(field.type)
    if isinstance(kind, msgspec.inspect.Metadata):
        kind = kind.type
    if isinstance(kind, msgspec.inspect.LiteralType):
        return f"one of {', '.join(map(str, kind.values))}"
    assert isinstance(kind, msgspec.inspect.IntType)
    if kind.ge is None or kind.le is None:
        return "a whole number" if kind.ge is None else f"a whole number of at least {kind.ge}"
    return f"a whole number from {kind.ge} to {kind.le}"


def _hint(wrong: str, right: list[str]) -> str:
    close = get_close_matches(wrong, right, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f" (there are {', '.join(right)})"
