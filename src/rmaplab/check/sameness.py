# SPDX-License-Identifier: GPL-2.0-or-later
"""Do two designs find the same VMAs?

"It tracks the exact same VMAs as the anon_vma implementation" is what the author of the proposed design
claims for it.  Here that is a question about two walks of one folio: which VMAs does one visit that the
other does not, and does the page table there map the folio?  A VMA that only one of them visits and that
maps nothing of the folio costs time; one that maps it and is not visited is a bug (completeness says that,
too, without asking the other design).
"""

from __future__ import annotations

from collections.abc import Sequence

from rmaplab.check.truth import Place


def compare(reference: Sequence[Place], places: Sequence[Place]) -> tuple[list[Place], list[Place]]:
    """(missing, additional): the places of `reference` in VMAs that `places` never visits, and those of
    `places` in VMAs that `reference` never visits."""
    if reference == places:
        return [], []
    theirs = {id(vma) for vma, _ in reference}
    ours = {id(vma) for vma, _ in places}
    if theirs == ours:
        return [], []
    missing = [place for place in reference if id(place[0]) not in ours]
    additional = [place for place in places if id(place[0]) not in theirs]
    return missing, additional


