# SPDX-License-Identifier: GPL-2.0-or-later
"""Each count and each list that a design keeps is recounted: with any of them wrong, `audit` says which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from rmap.world import PAGE, World
from rmaplab.check.truth import leaks
from rmaplab.mm.profile import REFERENCE
from rmaplab.mm.vma import MM
from rmaplab.sync.work import Tally

# Any: each reaches into its own design.
Tamper = Callable[[Any, MM, MM], None]


def anon_vma_of(design: Any, mm: MM) -> Any:
    [vma] = [vma for vma in mm.tree if vma.prepared and vma.end - vma.start == 4 * PAGE]
    return design.fields_of(vma).anon_vma


def add(what: str, by: int = 1) -> Callable[[Any], None]:
    def change(owner: Any) -> None:
        setattr(owner, what, getattr(owner, what) + by)

    return change


def of_anon_vma(change: Callable[[Any], None]) -> Tamper:
    return lambda design, parent, child: change(anon_vma_of(design, child))


def of_context(change: Callable[[Any], None]) -> Tamper:
    return lambda design, parent, child: change(design.context_of(parent))


def pool(name: str) -> Tamper:
    return lambda design, parent, child: getattr(design, name).alloc()


def lost_link(design: Any, parent: MM, child: MM) -> None:
    anon_vma = anon_vma_of(design, child)
    [vma] = [vma for vma in child.tree if vma.prepared and vma.end - vma.start == 4 * PAGE]
    [link] = [link for link in design.fields_of(vma).chain if link.anon_vma is anon_vma]
    anon_vma.remove(link, Tally(""))


WRONG: Final[list[tuple[str, Tamper, str]]] = [
    ("anon_vma", pool("chain_pool"), "anon_vma_chains in use"),
    ("anon_vma", pool("anon_vma_pool"), "anon_vmas in use"),
    ("anon_vma", of_anon_vma(add("refcount")), "references to anon_vma"),
    ("anon_vma", of_anon_vma(add("num_children")), "children of anon_vma"),
    ("anon_vma", of_anon_vma(add("num_active_vmas")), "active VMAs of anon_vma"),
    ("anon_vma", lost_link, "AVCs in the tree of anon_vma"),
    ("anon_vma_lazy", pool("pinned_pool"), "root VMAs pinned"),
    ("anon_vma_lazy", pool("kept_pool"), "mm_structs kept by roots"),
    ("cow_context", pool("context_pool"), "contexts in use"),
    ("cow_context", of_context(add("refcount")), "references to context"),
    ("cow_context", of_context(lambda context: setattr(context, "first_child", None)), "children of context"),
    ("cow_context", of_context(lambda context: setattr(context, "mm", None)), "does not refer to it"),
    ("cow_context", of_context(lambda context: context.remaps.add(1, 1, 5)), "has a record of page offsets 0x1 to 0x1"),
    ("anonmm", pool("pool"), "anonmms in use"),
    ("anonmm", lambda design, parent, child: add("count")(design.anonmm_of(child)), "references to anonmm"),
    ("anonmm", lambda design, parent, child: design.anonmm_of(parent).head().members.popitem(), "members of the list"),
    ("pte_chain", pool("pool"), "nodes of chains in use"),
    ("pte_chain", lambda design, parent, child: design.chains.popitem(), "pointers to entries of mm"),
]


def family(name: str, kernel: str = REFERENCE) -> tuple[World, MM, MM]:
    """A parent with four pages and its child, which has a page of its own among them."""
    world = World(name, kernel=kernel)
    parent = world.spawn()
    addr = parent.written(4 * PAGE)
    child = parent.fork()
    child.write(addr)
    return world, parent.mm, child.mm


@pytest.mark.parametrize(("name", "tamper", "sentence"), WRONG, ids=[f"{name}: {said}" for name, _, said in WRONG])
def test_what_is_wrong_is_said(name: str, tamper: Tamper, sentence: str) -> None:
    world, parent, child = family(name)
    assert leaks(world.machine) == []
    tamper(world.design(name), parent, child)
    said = leaks(world.machine)
    assert any(sentence in words and owner == name for words, owner in said), said


@pytest.mark.parametrize(
    ("tamper", "sentence"),
    [
        (lambda machine, mm: add("count")(mm.users_word), "users of mm"),
        (lambda machine, mm: machine.mm_pool.alloc(), "mm_structs in use"),
        (lambda machine, mm: machine.vma_pool.alloc(), "vm_area_structs in use"),
        (lambda machine, mm: machine.vma_lock_pool.alloc(), "vma_locks in use"),
        (lambda machine, mm: machine.get_folio(machine.folios.end - 1), "folios that somebody refers to"),
    ],
)
def test_what_the_machine_counts_wrongly_is_said(tamper: Callable[[Any, MM], None], sentence: str) -> None:
    world, parent, _ = family("anon_vma", "6.12")  # where a VMA's lock is an object of its own
    tamper(world.machine, parent)
    said = leaks(world.machine)
    assert any(sentence in words and owner == "" for words, owner in said), said
