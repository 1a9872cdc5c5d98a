# SPDX-License-Identifier: GPL-2.0-or-later
"""The program `rmaplab`: which verb is meant, and how it ends.

A verb's function does its work and returns whether what it looked at holds (or, as `record` does, the exit status of
another command); every way to fail becomes one sentence on stderr here.  Data goes to stdout, progress to stderr.
Its parameters are the command line; options that several verbs have are the fields of a dataclass, of which a verb has
a parameter: what that has as its default are the defaults of that verb.  Help fits a screen of 24 lines: what is rarely
asked for is `hidden`, and shown by --help-all.

Exit status 0: done, and all holds; 1: done, and something does not hold; 2: could not be done; 141: the reader of the
output has gone before its end (as in `rmaplab compare … | head`), so that nobody takes it for a verdict.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import gc
import importlib
import inspect
import io
import os
import resource
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, get_type_hints

from rmaplab.commands import VERBS, Verb
from rmaplab.errors import CannotRun, in_a_line, is_ours
from rmaplab.terminal import say

HOLDS: Final = 0
DOES_NOT_HOLD: Final = 1
COULD_NOT_RUN: Final = 2
NO_READER: Final = 141  # as a shell says of what SIGPIPE has ended

# Of a library, and of a thread, for which there is no room: neither raises MemoryError.
_NO_ROOM: Final = ("failed to map segment", "annot allocate memory", "can't start new thread")
_THREADS: Final = "OPENBLAS_NUM_THREADS"
_HELP_ALL: Final = "--help-all"
_STATUS: Final = "Exit status: 0 all holds, 1 something does not, 2 could not run, 141 output cut"


def main(arguments: Sequence[str] | None = None) -> None:
    """The program `rmaplab`."""
    # Thousands of VMAs and chains live as long as their machine: looking through them for cycles so often, as
    # the default has it, takes a tenth of a replay.  Modules stay for good.
    gc.set_threshold(50_000, 20, 100)
    gc.disable()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for encodings that lack a character
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Do what `arguments` say; the exit status."""
    try:
        job = _job(arguments)
        gc.freeze()
        gc.enable()
        found = job is None or job()
        sys.stdout.flush()
        if isinstance(found, bool):
            return HOLDS if found else DOES_NOT_HOLD
        return found
    except KeyboardInterrupt:
        return _refuse("interrupted, so there is no result")
    except BrokenPipeError:
        _write_no_more()
        return NO_READER
    except CannotRun as error:
        return _refuse(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        try:
            sys.stdout.flush()
        except OSError:
            _write_no_more()
        return _refuse(f"{where}{error.strerror or error}")
    except MemoryError:
        return _refuse(f"there is not enough memory for a history of this size{_limit()}")
    except Exception as error:
        if isinstance(error, (ImportError, RuntimeError)) and any(what in str(error) for what in _NO_ROOM):
            return _refuse(f"there is not enough memory ({error}){_limit()}")
        mistake = _mistake_in_design(error)
        if mistake:
            return _refuse(mistake)
        import traceback

        traceback.print_exc()  # a mistake in rmaplab, whose author needs to see where
        return COULD_NOT_RUN


def _mistake_in_design(error: Exception) -> str:
    """Which design of a user's raised `error`, where, and at which event, in a sentence; "" if none did."""
    from rmaplab.mm.reverse_map import ReverseMap

    name = ""
    step = error.__traceback__
    while step is not None:
        frame = step.tb_frame
        design = None if is_ours(frame.f_code.co_filename) else frame.f_locals.get("self")
        if isinstance(design, ReverseMap):
            name = design.name
        step = step.tb_next
    return name and ", ".join([f"{name} raised {in_a_line(error)}", *getattr(error, "__notes__", ())])


def _limit() -> str:
    """How much address space a process may have, if that is limited."""
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    return "" if most == resource.RLIM_INFINITY else f"; `ulimit -v` allows {most >> 10} KiB"


def _write_no_more() -> None:
    """So that the interpreter does not write to stdout once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _refuse(sentence: str) -> int:
    say(sentence)
    return COULD_NOT_RUN


def _job(arguments: list[str]) -> Callable[[], int] | None:
    """What is to be done; None if it was done already: `--help` and `--version`."""
    first = arguments[0] if arguments else "--help"
    if first == "--version":
        from rmaplab.commands.envelope import VERSION

        print(f"rmaplab {VERSION}")
        return None
    for words in (2, 1):
        for verb in VERBS:
            if verb.name == " ".join(arguments[:words]):
                return _parse(verb, arguments[words:])
    group = [verb for verb in VERBS if verb.name.startswith(f"{first} ")]
    rest = arguments[1:] if group else arguments
    if not rest or rest[0] in ("--help", "-h", "help"):
        print(_overview(group or VERBS, f"{first} " if group else ""))
        return None
    name = f"{first} {rest[0]}" if group else first
    near = difflib.get_close_matches(name, [verb.name for verb in VERBS], 1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise CannotRun(f"there is no command {name!r}{hint} See rmaplab --help.")


def _overview(verbs: Sequence[Verb], group: str) -> str:
    lines = [
        f"Usage: rmaplab {group}COMMAND ...",
        "",
        "  A laboratory for the anonymous reverse mapping of Linux.",
        "",
        "Commands:",
        *(f"  {verb.name:16} {verb.summary}" for verb in verbs),
        "",
        "rmaplab COMMAND --help says more. Example: rmaplab compare forkchain",
        _STATUS,
    ]
    return "\n".join(lines)


def function_of(verb: Verb) -> Callable[..., int]:
    """The function that does what `verb` says."""
    module, _, name = verb.module.partition(":")
    # NumPy's linear algebra, which nobody needs here, begins a thread for each CPU, in a quarter of the time that it
    # takes to import NumPy.  A program that is recorded finds its environment as it was.
    given = os.environ.get(_THREADS)
    os.environ[_THREADS] = given or "1"
    try:
        found: Callable[..., int] = getattr(importlib.import_module(f"rmaplab.commands.{module}"), name or "command")
    finally:
        if given is None:
            del os.environ[_THREADS]
    return found


def _parse(verb: Verb, arguments: list[str]) -> Callable[[], int] | None:
    """The call that `arguments` describe.  The words after "--" are a command, which the verb finds in its context."""
    import typer

    everything = _HELP_ALL in arguments
    if everything:
        arguments = ["--help"]
    function = _spread(function_of(verb), everything)
    after: list[str] = []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, after = arguments[:cut], arguments[cut + 1 :]

    @functools.wraps(function)
    def later(**given: object) -> Callable[[], int]:
        return functools.partial(function, **given)  # not within the parser, which has its own ideas of errors

    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(later)
    try:
        job = app(arguments, prog_name=f"rmaplab {verb.name}", standalone_mode=False, obj=after)
    except typer.TyperException as error:
        raise CannotRun(f"{error.format_message()} See rmaplab {verb.name} --help.") from None
    return job if callable(job) else None


def _spread(function: Callable[..., int], everything: bool) -> Callable[..., int]:
    """`function`, with the fields of a dataclass that it takes as parameters in its place, and an option that shows
    what is hidden, if that is not `everything`."""
    parameters: list[inspect.Parameter] = []
    records: dict[str, Any] = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        record = parameter.default
        if not dataclasses.is_dataclass(record):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        records[parameter.name] = record
        kinds = get_type_hints(type(record), include_extras=True)
        parameters += [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=getattr(record, name), annotation=kinds[name]
            )
            for name in (field.name for field in dataclasses.fields(record))
        ]

    hidden = sum(_hidden(parameter.annotation) is not None for parameter in parameters)
    if everything:
        parameters = [parameter.replace(annotation=_shown(parameter.annotation)) for parameter in parameters]
    elif hidden:
        import typer

        more = Annotated[bool, typer.Option(_HELP_ALL, help=f"Show {hidden} more, and exit.")]
        parameters.append(inspect.Parameter("more", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=more))

    def call(**given: Any) -> int:
        given.pop("more", None)
        for name, record in records.items():
            own = {field.name: given.pop(field.name) for field in dataclasses.fields(record)}
            given[name] = dataclasses.replace(record, **own)
        return function(**given)

    call.__doc__ = function.__doc__
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def _hidden(annotation: Any) -> Any:
    """What Typer knows of a parameter that help does not show; None: help shows it."""
    return next((info for info in getattr(annotation, "__metadata__", ()) if info.hidden), None)


def _shown(annotation: Any) -> Any:
    """The annotation of a parameter that help shows."""
    info = copy.copy(_hidden(annotation))
    if info is None:
        return annotation
    info.hidden = False
    return Annotated[annotation.__origin__, info]
