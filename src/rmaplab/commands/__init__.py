# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of `rmaplab`, one module per verb.

`VERBS` is all that start-up needs: a verb's module is imported when the verb is used.  The function of a verb is
`command` of its module, unless the table names another; its parameters are the command line, its docstring the help,
and it returns whether what it looked at holds, or an exit status of its own.  options.py has the options that verbs
share, envelope.py the one shape of `--json`, frame.py what happens around a verb.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Verb(NamedTuple):
    """name: as it is typed; module: of this package, with `:function` where that is not `command`."""

    name: str
    module: str
    summary: str


VERBS: Final = (
    Verb("record", "record", "Run a command and record its memory history"),
    Verb("replay", "replay", "Run a recording through designs"),
    Verb("run", "run", "Run a built-in workload through designs"),
    Verb("compare", "compare", "Compare designs on one history"),
    Verb("verify", "verify", "Check every design on random histories"),
    Verb("race", "race", "Check designs in every interleaving of CPUs"),
    Verb("scale", "scale", "Run a workload on 1 to 1024 simulated CPUs"),
    Verb("calibrate", "calibrate", "Measure what work costs on this machine"),
    Verb("reproduce", "reproduce", "Repeat published measurements"),
    Verb("sweep", "sweep", "Run a table of parameters on all cores or a cluster"),
    Verb("report", "report", "Write a page about a history, or a sweep's results"),
    Verb("explore", "explore", "Write a page that shows a history step by step"),
    Verb("show", "show", "Print one step of a history as text"),
    Verb("kernel setup", "kernel:setup", "Fetch a kernel and its debug information"),
    Verb("kernel compare", "kernel:compare", "Compare the model with a real kernel, step by step"),
    Verb("kernel native", "kernel:native", "Compare the machine with Linux's own mm/vma.c"),
    Verb("kernel run", "kernel:run", "Run a history in a real kernel"),
    Verb("kernel import", "kernel:import_", "Import a real kernel's state and walk its pages"),
    Verb("kernel userland", "kernel:userland", "Run real programs in a guest and walk their pages"),
)
