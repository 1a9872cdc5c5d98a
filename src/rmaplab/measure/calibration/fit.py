# SPDX-License-Identifier: GPL-2.0-or-later
"""Costs from programs: what each kind of work takes, so that counts times costs are the times that were measured.

    time of a program  ≈  sum over kinds of work (count in the program x cost of the kind)

- Costs are not negative (Lawson and Hanson's NNLS, scipy.optimize.nnls).
- Each program weighs the same: its row is divided by its time, so that what is fitted is predicted over measured.
- What was measured directly, by a program that does nothing else, is known: it is taken off before the fit.
- Kinds that no program tells apart are one: where columns are proportional over all programs, they are added up
  (`groups`), and their costs keep the proportion in which they begin (`start`), or are the same where they have none.
- Kinds that are told apart badly are kept from 0 and from absurdity by a gentle pull to where they begin (`start`): a
  row for each kind, that weighs PULL of a program.  The less the programs say of a kind, the more the pull decides;
  `weak` names those where it decides most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from rmaplab.measure.cost import Residual

# Of a program's weight.  Counts tell a program's time to a tenth or so, and a guess tells a cost to its own size: who
# weighs both by what they are worth, weighs a guess a tenth of a program.
PULL: Final = 0.1
PROPORTIONAL: Final = 0.9995  # cosine of the angle between two columns that are one

Array = npt.NDArray[np.float64]


class Row(NamedTuple):
    """A program: its counted work, by key, and its time in nanoseconds."""

    program: str
    counts: Mapping[str, int]
    ns: float


class Fit(NamedTuple):
    """What was found.

    costs:     nanoseconds a unit, by key, without those that were known
    groups:    keys that were fitted as one
    weak:      keys whose cost the programs hardly decide
    residuals: predicted against measured, by program
    """

    costs: dict[str, float]
    groups: list[list[str]]
    weak: list[str]
    residuals: list[Residual]


def fit(rows: Sequence[Row], known: Mapping[str, float], start: Mapping[str, float] | None = None) -> Fit:
    """Costs of all that `rows` count and `known` does not have.

    start: where costs begin (nanoseconds a unit, more than 0); what is not in it is not pulled anywhere
    """
    keys = sorted({key for row in rows for key, count in row.counts.items() if count} - set(known))
    if not keys:
        return Fit({}, [], [], [_residual(row, known) for row in rows])
    times = np.array([row.ns for row in rows])
    table = np.array([[row.counts.get(key, 0) for key in keys] for row in rows], dtype=np.float64)
    rest = times - np.array([_priced(row, known) for row in rows])
    relative = table / times[:, None]
    members = _groups(relative)
    begin = start or {}
    shares = [_shares([keys[i] for i in group], begin) for group in members]
    columns = np.stack([relative[:, g] @ np.array(share) for g, share in zip(members, shares, strict=True)], axis=1)
    target = rest / times
    pulls, wanted = _pull([all(begin.get(keys[i]) for i in group) for group in members])
    solution = nnls(np.vstack([columns, pulls]), np.concatenate([target, wanted]), maxiter=100 * len(members))[0]
    costs: dict[str, float] = {}
    for group, share, scale in zip(members, shares, solution, strict=True):
        costs |= {keys[i]: float(scale * part) for i, part in zip(group, share, strict=True)}
    every = {**known, **costs}
    return Fit(
        costs=costs,
        groups=[[keys[i] for i in group] for group in members if len(group) > 1],
        weak=_weak(keys, members, columns, pulls),
        residuals=[_residual(row, every) for row in rows],
    )


def _priced(row: Row, costs: Mapping[str, float]) -> float:
    return sum(count * costs[key] for key, count in row.counts.items() if key in costs)


def _residual(row: Row, costs: Mapping[str, float]) -> Residual:
    return Residual(row.program, row.ns, _priced(row, costs))


def _groups(relative: Array) -> list[list[int]]:
    """Columns that are proportional to each other, each with its like."""
    lengths = np.linalg.norm(relative, axis=0)
    unit = relative / lengths
    groups: list[list[int]] = []
    for i in range(relative.shape[1]):
        for group in groups:
            if unit[:, i] @ unit[:, group[0]] > PROPORTIONAL:
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def _shares(group: Sequence[str], start: Mapping[str, float]) -> list[float]:
    """What a unit of each costs where a unit of the group costs 1."""
    if all(start.get(key) for key in group):
        return [start[key] for key in group]
    return [1.0] * len(group)


def _pull(begins: Sequence[bool]) -> tuple[Array, Array]:
    """A row for each group with a start: a unit of it is to cost 1, at a weight of PULL."""
    rows = PULL * np.eye(len(begins))[np.array(begins)]
    return rows, np.full(len(rows), PULL)


def _weak(keys: Sequence[str], members: list[list[int]], columns: Array, pulls: Array) -> list[str]:
    """Kinds of which the pull knows more than the programs: what the others leave of the column is shorter than it."""
    weak: list[str] = []
    for number, group in enumerate(members):
        others = np.delete(columns, number, axis=1)
        own: Any = columns[:, number]
        left = own - others @ np.linalg.lstsq(others, own, rcond=None)[0] if others.shape[1] else own
        pull = pulls[:, number].max(initial=0.0)
        if np.linalg.norm(left) <= max(pull, 1e-9 * np.linalg.norm(own)):
            weak += [keys[i] for i in group]
    return weak
