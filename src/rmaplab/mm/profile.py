# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel profiles: the rules that differ between kernel versions, and the sizes of objects.

`6.12` is the reference: its sources are what mm/ and rmap/ model.  Others state how they differ, and
each rule says which commit or version it comes from.
"""

from __future__ import annotations

from typing import Final


class Profile:
    """One kernel.

    name:    "6.12"
    relaxed_anon_merge: a prepared range may merge with an unprepared neighbour on either side unless it
             was inherited from a parent process (mm/vma.c is_mergeable_anon_vma(), since 6.16)
    move_many: mremap() may move a range of several VMAs at once (mm/mremap.c, since 6.17)
    sizes:   bytes an object takes in its slab, by type
    """

    def __init__(self, name: str, relaxed_anon_merge: bool, move_many: bool, sizes: dict[str, int]) -> None:
        self.name: Final = name
        self.relaxed_anon_merge: Final = relaxed_anon_merge
        self.move_many: Final = move_many
        self.sizes: Final = sizes
