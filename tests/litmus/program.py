# SPDX-License-Identifier: GPL-2.0-or-later
"""Litmus tests in the kernel's C (tools/memory-model/Documentation/litmus-tests.txt): read, and run on a memory model.

A test has an initial state, a few processes P0, P1, …, and a question about the states in which they may end.  The
processes' bodies are parsed by pycparser and interpreted as they are: each becomes a program in the sense of
operations.py.  Dependencies are syntactic, as herd7 takes them: `r0 ^ r0` depends on r0; an `if` orders what is in
its branches, and nothing after it.

Left out: SRCU, loops, arrays, structures.  Plain accesses are taken for marked ones; what herd7 calls a data race
is none here.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from litmus.operations import (
    ACQUIRE,
    MB,
    NORETURN,
    ONCE,
    RELEASE,
    After,
    Fence,
    IsLocked,
    Lock,
    Memory,
    Number,
    Operation,
    Program,
    Read,
    Unlock,
    Update,
    Value,
    Write,
)
from rmaplab.errors import CannotRun

State: TypeAlias = Mapping[str, Number]  # "0:r1": a register of P0; "x": a location
Outcome: TypeAlias = tuple[tuple[str, Number], ...]  # a state, as far as somebody looks at it

_TYPES: Final = "typedef int spinlock_t; typedef int atomic_t; typedef int bool;\n"
_WORDS: Final = re.compile(r"/\\|\\/|~|\(|\)|!=|=|-?\w+:\w+|-?\w+|&\w+|\[|\]|;")
_FENCES: Final = {
    "smp_mb": "mb",
    "smp_rmb": "rmb",
    "smp_wmb": "wmb",
    "barrier": "barrier",
    "smp_mb__before_atomic": "before-atomic",
    "smp_mb__after_atomic": "after-atomic",
    "smp_mb__after_spinlock": "after-spinlock",
    "smp_mb__after_unlock_lock": "after-unlock-lock",
    "rcu_read_lock": "rcu-lock",
    "rcu_read_unlock": "rcu-unlock",
    "synchronize_rcu": "sync-rcu",
    "synchronize_rcu_expedited": "sync-rcu",
}
_ORDERS: Final = {"": MB, "relaxed": ONCE, "acquire": ACQUIRE, "release": RELEASE}
_BINARY: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "&": operator.and_, "|": operator.or_, "^": operator.xor,
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "&&": lambda a, b: bool(a) and bool(b), "||": lambda a, b: bool(a) or bool(b),
}  # fmt: skip
_UNARY: Final[dict[str, Callable[[Any], Any]]] = {
    "-": operator.neg, "+": operator.pos, "!": operator.not_, "~": operator.invert,
}  # fmt: skip
_ATOMIC: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "add": operator.add, "sub": operator.sub, "and": operator.and_, "or": operator.or_, "xor": operator.xor,
    "inc": operator.add, "dec": operator.sub, "andnot": lambda old, value: old & ~value,
}  # fmt: skip
_ATOMIC_NAME: Final = re.compile(
    rf"atomic_(fetch_)?({'|'.join(sorted(_ATOMIC, reverse=True))})(_return|_and_test|_negative)?"
    r"(?:_(relaxed|acquire|release))?"
)
_XCHG_NAME: Final = re.compile(r"(?:atomic_)?(cmp)?xchg(?:_(relaxed|acquire|release))?")


class LitmusError(CannotRun):
    """A file is no litmus test that can be read here: the message says which, and why."""


class Litmus(NamedTuple):
    """A test.

    initial:   what locations hold at first; those that are not named hold 0
    processes: of each, the names of its registers and its body (pycparser's FuncDef)
    quantifier: "exists", "~exists" or "forall"
    condition: does a state meet what the test asks for?
    filter:    which states count at all
    observed:  the registers and locations that herd7 prints, in the order of their names
    """

    name: str
    initial: Mapping[str, Number]
    processes: tuple[Any, ...]
    quantifier: str
    condition: Callable[[State], bool]
    filter: Callable[[State], bool]
    observed: tuple[str, ...]

    def outcome(self, state: State) -> Outcome:
        return tuple((name, state.get(name, 0)) for name in self.observed)


def read(path: Path) -> Litmus:
    """:raises LitmusError: it is no litmus test, or has what is not known here"""
    try:
        return parse(path.read_text())
    except OSError as error:
        raise LitmusError(f"{path} cannot be read ({error.strerror}).") from None
    except LitmusError as error:
        raise LitmusError(f"{path}: {error}") from None


def parse(text: str) -> Litmus:
    """:raises LitmusError: it is no litmus test, or has what is not known here"""
    try:
        from pycparser import c_parser
    except ImportError:
        raise LitmusError("pycparser is missing, which reads C: run `pip install 'rmaplab[test]'`.") from None
    text = re.sub(r"\(\*\s.*?\*\)|/\*.*?\*/|//[^\n]*", " ", text, flags=re.DOTALL)
    match = re.fullmatch(
        r"\s*C\s+(?P<name>\S+)\s*\{(?P<initial>[^}]*)\}(?P<body>.*\})(?P<rest>[^}]*)", text, flags=re.DOTALL
    )
    if match is None:
        raise LitmusError("a litmus test has a line `C name`, an initial state in braces, processes and a condition.")
    code = re.sub(r"\bP(\d+)\s*\(", r"void P\1(", match["body"])
    try:
        processes = tuple(c_parser.CParser().parse(_TYPES + code).ext[3:])
    except Exception as error:  # pycparser's own class has moved from version to version
        raise LitmusError(f"the processes are not C as pycparser knows it ({error}).") from None
    return _Question(match["rest"]).test(match["name"], _initial(match["initial"]), processes)


def _initial(text: str) -> dict[str, Number]:
    """`int x = 1; int *y = &x; p=y; atomic_t v = ATOMIC_INIT(1);`"""
    found: dict[str, Number] = {}
    for part in filter(str.strip, text.split(";")):
        match = re.fullmatch(
            r"\s*(?:\w+[\s*]+)?\[?(\w+)\]?\s*(?:=\s*(?:ATOMIC_INIT\s*\(\s*)?(&?\s*[-\w]+)\s*\)?\s*)?", part
        )
        if match is None:
            raise LitmusError(f"`{part.strip()}` is no initial state that is known here.")
        found[match[1]] = _number(match[2] or "0")
    return found


def _number(word: str) -> Number:
    word = word.lstrip("& ")
    return int(word) if re.fullmatch(r"-?\d+", word) else word


class _Question:
    """What comes after the processes: `locations […]`, `filter (…)` and `exists (…)`."""

    def __init__(self, text: str) -> None:
        if re.sub(_WORDS, "", text).strip():
            raise LitmusError(f"`{re.sub(_WORDS, '', text).strip()}` in its condition is not known here.")
        self.words: Final[list[str]] = [*_WORDS.findall(text), ""]
        self.names: Final[set[str]] = set()

    def test(self, name: str, initial: dict[str, Number], processes: tuple[Any, ...]) -> Litmus:
        wanted: Callable[[State], bool] = _always
        if self._accept("locations"):
            self._accept("[")
            while not self._accept("]"):
                word = self._next()
                if re.match(r"\w", word):
                    self.names.add(word)
        if self._accept("filter"):
            wanted = self._either()
        quantifier = self._next()
        if quantifier == "~":
            quantifier += self._next()
        if quantifier not in ("exists", "~exists", "forall"):
            raise LitmusError("its condition begins with none of exists, ~exists and forall.")
        condition = self._either()
        if self.words[0]:
            raise LitmusError(f"`{self.words[0]}` after its condition is not known here.")
        return Litmus(name, initial, processes, quantifier, condition, wanted, tuple(sorted(self.names)))

    def _next(self) -> str:
        return self.words.pop(0) if self.words[0] else ""

    def _accept(self, word: str) -> bool:
        if self.words[0] == word:
            self.words.pop(0)
            return True
        return False

    def _either(self) -> Callable[[State], bool]:
        left = self._both()
        if self._accept("\\/"):
            right = self._either()
            return lambda state: left(state) or right(state)
        return left

    def _both(self) -> Callable[[State], bool]:
        left = self._one()
        if self._accept("/\\"):
            right = self._both()
            return lambda state: left(state) and right(state)
        return left

    def _one(self) -> Callable[[State], bool]:
        if self._accept("~"):
            part = self._one()
            return lambda state: not part(state)
        if self._accept("("):
            part = self._either()
            if not self._accept(")"):
                raise LitmusError("a `)` is missing in its condition.")
            return part
        if self._accept("true"):
            return _always
        self._accept("[")
        name = self._next()
        self._accept("]")
        differs = self._accept("!=")
        if not differs and not self._accept("="):
            raise LitmusError(f"`=` is missing after `{name}` in its condition.")
        value = _number(self._next())
        self.names.add(name)
        return lambda state: (state.get(name, 0) == value) != differs


def _always(state: State) -> bool:
    return True


# Running


def run(test: Litmus, memory: Memory) -> set[Outcome]:
    """The states in which the test may end, as far as it looks at them."""
    found: set[Outcome] = set()
    registers: list[dict[str, Value]] = [{} for _ in test.processes]

    def starts(number: int) -> Callable[[], Program]:
        def start() -> Program:
            registers[number].clear()
            return _Process(test.processes[number], registers[number], memory.nothing).run()

        return start

    def ended(locations: Mapping[str, Number]) -> None:
        state = dict(locations)
        for number, held in enumerate(registers):
            state.update({f"{number}:{name}": value.number for name, value in held.items()})
        if test.filter(state):
            found.add(test.outcome(state))

    memory.explore(test.initial, [starts(number) for number in range(len(test.processes))], ended)
    return found


def holds(test: Litmus, outcomes: Iterable[Outcome]) -> tuple[int, int]:
    """How many of the outcomes meet the condition, and how many do not."""
    met = [test.condition(dict(outcome)) for outcome in outcomes]
    return met.count(True), met.count(False)


_Steps: TypeAlias = Generator[Operation, Value | None, Value]


class _Process:
    """One process, statement by statement."""

    def __init__(self, function: Any, registers: dict[str, Value], nothing: After) -> None:
        self.function: Final = function
        self.registers: Final = registers
        self.nothing: Final = nothing
        self.control: After = nothing

    def run(self) -> Program:
        parameters = self.function.decl.type.args
        shared = {parameter.name: Value(parameter.name, self.nothing) for parameter in parameters or ()}
        self.shared = shared
        yield from self._statement(self.function.body)

    def _statement(self, node: Any) -> Program:
        kind = type(node).__name__
        if kind == "Compound":
            for item in node.block_items or ():
                yield from self._statement(item)
        elif kind == "Decl":
            if node.init is not None:
                self.registers[node.name] = yield from self._value(node.init)
        elif kind == "If":
            value = yield from self._value(node.cond)
            outside = self.control
            self.control = outside | value.after
            branch = node.iftrue if value.number else node.iffalse
            if branch is not None:
                yield from self._statement(branch)
            self.control = outside
        elif kind != "EmptyStatement":
            yield from self._value(node)

    def _address(self, node: Any) -> _Steps:
        """Where `*p` or `x` is."""
        if type(node).__name__ == "UnaryOp" and node.op == "*":
            return (yield from self._value(node.expr))
        if type(node).__name__ == "ID" and node.name not in self.registers:
            return Value(node.name, self.nothing)
        raise _unknown(node)

    def _value(self, node: Any) -> _Steps:
        kind = type(node).__name__
        if kind == "Constant":
            return Value(int(node.value, 0), self.nothing)
        if kind == "ID":
            return self.shared.get(node.name) or self.registers.get(node.name) or Value(0, self.nothing)
        if kind == "Cast":
            return (yield from self._value(node.expr))
        if kind == "UnaryOp":
            if node.op == "*":
                return (yield from self._read((yield from self._value(node.expr)), ONCE))
            if node.op == "&":
                return (yield from self._address(node.expr))
            if node.op in _UNARY:
                value = yield from self._value(node.expr)
                return Value(int(_UNARY[node.op](value.number)), value.after)
        if kind == "BinaryOp" and node.op in _BINARY:
            left = yield from self._value(node.left)
            right = yield from self._value(node.right)
            return Value(_calculate(node.op, left.number, right.number), left.after | right.after)
        if kind == "Assignment" and node.op == "=":
            value = yield from self._value(node.rvalue)
            if type(node.lvalue).__name__ == "ID":
                self.registers[node.lvalue.name] = value
            else:
                yield Write((yield from self._address(node.lvalue)), value, ONCE, self.control)
            return value
        if kind == "FuncCall":
            return (yield from self._call(node))
        raise _unknown(node)

    def _read(self, location: Value, order: str) -> _Steps:
        return _got((yield Read(location, order, self.control)))

    def _call(self, node: Any) -> _Steps:
        name = node.name.name
        arguments = list(node.args.exprs) if node.args is not None else []
        done = Value(0, self.nothing)
        if name in _FENCES:
            yield Fence(_FENCES[name])
            return done
        if name in ("READ_ONCE", "rcu_dereference"):
            return (yield from self._read((yield from self._address(arguments[0])), ONCE))
        if name in ("WRITE_ONCE", "rcu_assign_pointer"):
            location = yield from self._address(arguments[0])
            value = yield from self._value(arguments[1])
            yield Write(location, value, ONCE if name == "WRITE_ONCE" else RELEASE, self.control)
            return done
        given = []
        for argument in arguments:
            given.append((yield from self._value(argument)))
        if name in ("smp_load_acquire", "atomic_read_acquire", "atomic_read"):
            return (yield from self._read(given[0], ONCE if name == "atomic_read" else ACQUIRE))
        if name in ("smp_store_release", "atomic_set_release", "atomic_set", "smp_store_mb"):
            yield Write(given[0], given[1], RELEASE if name.endswith("release") else ONCE, self.control)
            if name == "smp_store_mb":
                yield Fence("mb")
            return done
        if name in ("spin_lock", "spin_trylock"):
            return _got((yield Lock(given[0], name == "spin_trylock", self.control)))
        if name == "spin_unlock":
            yield Unlock(given[0])
            return done
        if name == "spin_is_locked":
            return _got((yield IsLocked(given[0], self.control)))
        if match := _XCHG_NAME.fullmatch(name):
            new = given[-1].number
            after = given[-1].after
            if match[1] is None:
                return _got((yield self._update(given[0], lambda old: new, after, match[2])))
            expected = given[1].number
            after = after | given[1].after
            return _got((yield self._update(given[0], lambda old: new if old == expected else None, after, match[2])))
        if name == "atomic_add_unless":
            add, unless = given[1].number, given[2].number
            after = given[1].after | given[2].after
            old = _got(
                (yield self._update(given[0], lambda old: None if old == unless else _sum(old, add), after, None))
            )
            return Value(int(old.number != unless), old.after | after)
        if match := _ATOMIC_NAME.fullmatch(name):
            return (yield from self._atomic(match, given))
        raise LitmusError(f"{name}() is not known here.")

    def _atomic(self, match: re.Match[str], given: list[Value]) -> _Steps:
        fetch, kind, returns, order = match.groups()
        operand = Value(1, self.nothing) if kind in ("inc", "dec") else given[0]
        calculate = _ATOMIC[kind]

        def change(old: Number) -> Number:
            return int(calculate(old, operand.number))

        mode = NORETURN if fetch is None and returns is None else _ORDERS[order or ""]
        old = _got((yield Update(given[-1], change, operand.after, mode, self.control)))
        new = change(old.number)
        if returns is None:
            return old
        result = {"_return": new, "_and_test": int(new == 0), "_negative": int(int(new) < 0)}[returns]
        return Value(result, old.after | operand.after)

    def _update(
        self, location: Value, change: Callable[[Number], Number | None], operands: After, order: str | None
    ) -> Update:
        return Update(location, change, operands, _ORDERS[order or ""], self.control)


def _got(value: Value | None) -> Value:
    assert value is not None, "this operation has a value"
    return value


def _sum(old: Number, add: Number) -> Number:
    return int(old) + int(add)


def _calculate(op: str, left: Number, right: Number) -> Number:
    if isinstance(left, str) or isinstance(right, str):
        if op in ("==", "!="):
            return int(_BINARY[op](left, right))
        if op == "^" and left == right:
            return 0
        if op in ("+", "^") and right == 0:
            return left
        if op == "+" and left == 0:
            return right
        raise LitmusError(f"`{op}` of addresses is not known here.")
    return int(_BINARY[op](left, right))


def _unknown(node: Any) -> LitmusError:
    from pycparser import c_generator

    return LitmusError(f"`{c_generator.CGenerator().visit(node)}` is not known here.")
