# SPDX-License-Identifier: GPL-2.0-or-later
"""What is expected of an argument, where a call failed by one.

The library is called by hand, and Python's word on an argument of the wrong type is about an operation deep inside.
Functions that are `explained` say which argument it was and what it has to be.

Invariant: arguments are looked at where a call has failed, and nowhere else: a call that works costs nothing more.
"""

from __future__ import annotations

import inspect
import re
import reprlib
from collections.abc import Callable, Iterable
from functools import wraps
from types import NoneType, UnionType
from typing import Any, ParamSpec, SupportsIndex, TypeVar, Union, get_args, get_origin, get_type_hints

from rmaplab.errors import CannotRun

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


class ArgumentError(CannotRun, TypeError):
    """An argument is not what it has to be; the message says which, and what."""


def explained(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which raises ArgumentError if it fails because an argument is not what its annotation says.  Of
    functions that call each other, it is the outermost of which that is true."""

    @wraps(function)
    def call(*args: P.args, **named: P.kwargs) -> R:
        try:
            return function(*args, **named)
        except (AttributeError, TypeError, ValueError):
            wrong = _wrong(function, args, named)
            if not wrong:
                raise
        raise ArgumentError(wrong)  # what failed because of it tells a user nothing

    return call


def explained_methods(cls: C) -> C:
    """The same for all public methods of a class, and for how it is made."""
    for name, method in inspect.getmembers(cls, inspect.isfunction):
        if name == "__init__" or not name.startswith("_"):
            setattr(cls, name, explained(method))
    return cls


def _wrong(function: Callable[..., object], args: tuple[Any, ...], named: dict[str, Any]) -> str:
    """Which argument does not fit, and what would, in a sentence; "" if all do, or Python says it well enough."""
    try:
        bound = inspect.signature(function).bind(*args, **named)
    except TypeError:  # one is missing, or there are too many
        return ""
    kinds = get_type_hints(function)
    for name, value in bound.arguments.items():
        if name in kinds and bound.signature.parameters[name].kind != inspect.Parameter.VAR_KEYWORD:
            choices = _choices(kinds[name])
            if not any(_fits(value, kind) for kind in choices):
                *others, last = map(_words, choices)
                what = f"{', '.join(others)} or {last}" if others else last
                article = "an" if what[0] in "aeioAEIO" else "a"
                called = function.__qualname__.removesuffix(".__init__")
                return f"{called}(): {name} has to be {article} {what}, not {reprlib.repr(value)}"
    return ""


def _choices(kind: Any) -> list[Any]:
    return [*get_args(kind)] if get_origin(kind) in (Union, UnionType) else [kind]


def _fits(value: object, kind: Any) -> bool:
    origin = get_origin(kind) or kind
    if not isinstance(origin, type):
        return True
    if issubclass(origin, Iterable) and get_args(kind):  # whatever can be gone through does
        origin = Iterable
    return isinstance(value, SupportsIndex if origin is int else origin)


def _words(kind: Any) -> str:
    """The type as an annotation has it, without the names of modules."""
    return "None" if kind is NoneType else re.sub(r"(\w+\.)+", "", inspect.formatannotation(kind))
