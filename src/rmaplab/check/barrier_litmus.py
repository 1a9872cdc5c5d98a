# SPDX-License-Identifier: GPL-2.0-or-later
"""The orderings that a design needs as litmus tests in the kernel's C, for herd7.

An ordering that a scenario needs (barriers.py) is reduced to its shape: a fresh object that is published and followed,
a change that a sequence count covers or of which a word tells, an object that is freed when nobody can look at it any
more, one whose last reference is dropped, or two words of which each says something of the other.  Each test exists
twice, with the ordering and without; LKMM forbids the outcome of the first and allows that of the second.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from rmaplab.check.barriers import Ordering
from rmaplab.check.weak_mutants import place
from rmaplab.printable import slug

_RELEASE: Final = "smp_store_release(pointer, field);"
_PLAIN: Final = "WRITE_ONCE(*pointer, field);"


# Atomics that nobody needs for what they change, but for what comes before them and after.
_BETWEEN: Final = ("folio_test_clear_unevictable()", "folio_test_clear_active()")
# Who reads the word first, and then what was changed before it.
_READERS: Final = ("ksm_get_folio()", "gup_must_unshare()")


class Litmus(NamedTuple):
    """A file: its name, its text, and whether LKMM forbids what it asks for."""

    name: str
    text: str
    forbidden: bool


def litmus_tests(design: str, ordering: Ordering) -> list[Litmus]:
    """The test with the ordering, and the test without; none if it has no shape that is known here."""
    name = slug(f"{design} {ordering.name}")
    found: list[Litmus] = []
    for there in (True, False):
        body = _body(ordering, there)
        if body:
            title = name if there else f"{name}-without"
            says = "Never" if there else "Sometimes"
            comment = f"(*\n * {ordering.primitive}, {place(ordering.name)}\n * Result: {says}\n *)\n"
            found.append(Litmus(f"{title}.litmus", f"C {title}\n\n{comment}\n{body}", there))
    return found


def _body(ordering: Ordering, there: bool) -> str:
    what, primitive = ordering.name, ordering.primitive
    if primitive == "smp_store_release()":
        return _published(_RELEASE if there else _PLAIN, True)
    if primitive == "address dependency":
        return _published(_RELEASE, there)
    if primitive == "call_rcu()":
        return _freed(there)
    if what == "__folio_try_share_anon_rmap()":
        return _told("smp_mb();" if there else "", "WRITE_ONCE(*word, 1);", "r0 = READ_ONCE(*word);", "smp_rmb();")
    if primitive == "smp_mb()":
        return _crossed("smp_mb();" if there else "")
    if what in _BETWEEN:
        how = "atomic_fetch_add" if there else "atomic_fetch_add_relaxed"
        return _told(f"r0 = {how}(1, other);", "WRITE_ONCE(*word, 1);", "r0 = READ_ONCE(*word);", "smp_rmb();")
    if what == "folio_try_get()":
        how = "atomic_cmpxchg" if there else "atomic_cmpxchg_relaxed"
        return _told("smp_wmb();", "WRITE_ONCE(*word, 1);", f"r0 = {how}(word, 1, 2);", "")
    if primitive == "atomic with _acquire":
        how = "atomic_xchg_acquire" if there else "atomic_xchg_relaxed"
        return _told("", "smp_store_release(word, 1);", f"r0 = {how}(word, 2);", "")
    if primitive == "atomic with _release":
        how = "atomic_xchg_release" if there else "atomic_xchg_relaxed"
        return _told("", f"r0 = {how}(word, 1);", "r0 = smp_load_acquire(word);", "")
    if primitive == "smp_load_acquire()":
        how = "smp_load_acquire(word)" if there else "READ_ONCE(*word)"
        return _told("", "smp_store_release(word, 1);", f"r0 = {how};", "")
    if what == "folio_migrate_ksm()":
        return _told("smp_wmb();" if there else "", "WRITE_ONCE(*word, 1);", "r0 = READ_ONCE(*word);", "smp_rmb();")
    if what in _READERS:
        return _told("smp_wmb();", "WRITE_ONCE(*word, 1);", "r0 = READ_ONCE(*word);", "smp_rmb();" if there else "")
    if primitive == "fully ordered atomic":
        return _dropped("atomic_dec_return" if there else "atomic_dec_return_relaxed")
    if what == "pmd_install()":
        return _published(f"smp_wmb();\n\t{_PLAIN}" if there else _PLAIN, True)
    if what.endswith(("write_seqcount_end()", "read_seqcount_begin()")):
        return _counted("1:r0=2 /\\ 1:r1=0", what, there)
    if what.endswith(("write_seqcount_begin()", "read_seqcount_retry()")):
        return _counted("1:r0=0 /\\ 1:r1=1 /\\ 1:r2=0", what, there)
    return ""


def _published(publish: str, follows: bool) -> str:
    """A fresh object is filled in and published; does who finds the pointer find what is in it?"""
    return f"""{{
int *pointer = &nothing;
int field = 0;
}}

P0(int **pointer, int *field)
{{
	WRITE_ONCE(*field, 1);
	{publish}
}}

P1(int **pointer, int *field)
{{
	int *r0;
	int r1;

	r0 = READ_ONCE(*pointer);
	r1 = READ_ONCE(*{"r0" if follows else "field"});
}}

exists (1:r0=field /\\ 1:r1=0)
"""


def _told(between: str, tell: str, learn: str, after: str) -> str:
    """Something changes, and then a word tells of it; does who reads the word find the change?"""
    return f"""{{
atomic_t word = ATOMIC_INIT(0);
atomic_t other = ATOMIC_INIT(0);
int field = 0;
}}

P0(atomic_t *word, atomic_t *other, int *field)
{{
	int r0;

	WRITE_ONCE(*field, 1);
{_line(between)}{_line(tell)}}}

P1(atomic_t *word, int *field)
{{
	int r0;
	int r1;

{_line(learn)}{_line(after)}	r1 = READ_ONCE(*field);
}}

exists (1:r0=1 /\\ 1:r1=0)
"""


def _line(words: str) -> str:
    return f"\t{words}\n" if words else ""


def _crossed(fence: str) -> str:
    """Each of two changes a word and looks at the other's; does at least one find the other's change?"""
    return f"""{{}}

P0(int *entry, int *pins)
{{
	int r0;

	WRITE_ONCE(*entry, 1);
{_line(fence)}	r0 = READ_ONCE(*pins);
}}

P1(int *entry, int *pins)
{{
	int r0;

	WRITE_ONCE(*pins, 1);
	smp_mb();
	r0 = READ_ONCE(*entry);
}}

exists (0:r0=0 /\\ 1:r0=0)
"""


def _freed(waits: bool) -> str:
    """A pointer is cleared and what it led to is freed, after a grace period; does a reader find it so?  call_rcu() is
    synchronize_rcu() on a CPU of its own."""
    wait = "\tsynchronize_rcu();\n" if waits else ""
    return f"""{{
int *pointer = &field;
int field = 0;
}}

P0(int **pointer, int *field)
{{
	WRITE_ONCE(*pointer, 0);
{wait}	WRITE_ONCE(*field, 1);
}}

P1(int **pointer, int *field)
{{
	int *r0;
	int r1;

	rcu_read_lock();
	r0 = rcu_dereference(*pointer);
	r1 = READ_ONCE(*field);
	rcu_read_unlock();
}}

exists (1:r0=field /\\ 1:r1=1)
"""


def _dropped(drop: str) -> str:
    """Two have a reference to an object; does who drops the last find what the other did to it before?"""
    return f"""{{
atomic_t references = ATOMIC_INIT(2);
int field = 0;
}}

P0(atomic_t *references, int *field)
{{
	int r0;

	WRITE_ONCE(*field, 1);
	r0 = {drop}(references);
}}

P1(atomic_t *references, int *field)
{{
	int r0;
	int r1;

	r0 = {drop}(references);
	r1 = READ_ONCE(*field);
}}

exists (1:r0=0 /\\ 1:r1=0)
"""


def _counted(exists: str, what: str, there: bool) -> str:
    """A change under a sequence count: does who reads an even count, twice the same, read what belongs to it?"""

    def fence(at: str, words: str) -> str:
        return f"\t{words}\n" if there or not what.endswith(at) else ""

    return f"""{{}}

P0(int *sequence, int *data)
{{
	WRITE_ONCE(*sequence, 1);
{fence("write_seqcount_begin()", "smp_wmb();")}	WRITE_ONCE(*data, 1);
{fence("write_seqcount_end()", "smp_wmb();")}	WRITE_ONCE(*sequence, 2);
}}

P1(int *sequence, int *data)
{{
	int r0;
	int r1;
	int r2;

	r0 = READ_ONCE(*sequence);
{fence("read_seqcount_begin()", "smp_rmb();")}	r1 = READ_ONCE(*data);
{fence("read_seqcount_retry()", "smp_rmb();")}	r2 = READ_ONCE(*sequence);
}}

exists ({exists})
"""
