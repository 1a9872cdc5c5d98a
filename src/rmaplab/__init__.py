# SPDX-License-Identifier: GPL-2.0-or-later
"""A laboratory for the anonymous reverse mapping of Linux.

    >>> import rmaplab as rl
    >>> m = rl.Machine("7.3", ["anon_vma", "cow_context"])
    >>> p = m.spawn()
    >>> a = p.mmap(4 * rl.PAGE)
    >>> p.write(a)
    >>> c = p.fork()
    >>> c.write(a)
    >>> m.walk(c, a)
    {'anon_vma': [(<process 2>, 0x7ffff7ffb000, True)], 'cow_context': [(<process 2>, 0x7ffff7ffb000, True)]}
    >>> rl.compare(m).holds
    True

`Machine`
    a machine to type system calls at; its processes are handles with a verb for each call
`compare`, `replay`, `record`, `workload`, `history`, `check`
    what the commands of the same names do, as objects
`CannotRun`, `HistoryError`, `SystemCallError`
    what can go wrong: a request that makes no sense, among these an event that cannot happen, and a system call that
    fails
`PAGE`
    bytes of a page; `PROT_READ`, `MAP_SHARED`, `MADV_DONTNEED` and all others: as Linux has them (mm/abi.py)

Names come from where they are when they are first used, so that importing this package, as the command does, costs
nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from rmaplab.version import __version__ as __version__
from rmaplab.version import build_info as build_info

if TYPE_CHECKING:
    from rmaplab.errors import CannotRun as CannotRun
    from rmaplab.library.errors import SystemCallError as SystemCallError
    from rmaplab.library.machine import Checked as Checked
    from rmaplab.library.machine import Machine as Machine
    from rmaplab.library.machine import Process as Process
    from rmaplab.library.memory import Page as Page
    from rmaplab.library.memory import Vma as Vma
    from rmaplab.library.places import Place as Place
    from rmaplab.library.places import Walk as Walk
    from rmaplab.library.verbs import check as check
    from rmaplab.library.verbs import compare as compare
    from rmaplab.library.verbs import history as history
    from rmaplab.library.verbs import record as record
    from rmaplab.library.verbs import replay as replay
    from rmaplab.library.verbs import workload as workload
    from rmaplab.measure.result import Comparison as Comparison
    from rmaplab.measure.table import Table as Table
    from rmaplab.mm.abi import *  # noqa: F403
    from rmaplab.mm.errors import HistoryError as HistoryError
    from rmaplab.trace.history import History as History
    from rmaplab.trace.script import PAGE as PAGE
    from rmaplab.trace.script import Script as Script
    from rmaplab.workloads import Workload as Workload

_HOME = {
    "CannotRun": "errors",
    "Checked": "library.machine",
    "Comparison": "measure.result",
    "History": "trace.history",
    "HistoryError": "mm.errors",
    "Machine": "library.machine",
    "PAGE": "trace.script",
    "Page": "library.memory",
    "Place": "library.places",
    "Process": "library.machine",
    "Script": "trace.script",
    "SystemCallError": "library.errors",
    "Table": "measure.table",
    "Vma": "library.memory",
    "Walk": "library.places",
    "Workload": "workloads",
    "compare": "library.verbs",
    "history": "library.verbs",
    "record": "library.verbs",
    "replay": "library.verbs",
    "workload": "library.verbs",
}


def __getattr__(name: str) -> object:
    if name == "__all__":
        return __dir__()
    if name == "check":  # the package is the verb
        return import_module("rmaplab.check")
    if name not in _HOME and not name.isupper():
        raise AttributeError(f"module 'rmaplab' has no attribute {name!r}")
    value: object = getattr(import_module(f"rmaplab.{_HOME.get(name, 'mm.abi')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    abi = vars(import_module("rmaplab.mm.abi"))
    return sorted([*_HOME, "build_info", "check", *(name for name in abi if name.isupper())])

