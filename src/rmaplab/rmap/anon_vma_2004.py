# SPDX-License-Identifier: GPL-2.0-or-later
"""Design `anon_vma_2004`: one anon_vma for a VMA and all that fork makes of it, as from 2.6.7 to 2.6.33.

anon_vma before 5beb49305251 ("mm: change anon_vma linking to fix multi-process server scalability
issue", 2.6.34).  There is no chain: a VMA is in the list of one anon_vma, and a forked VMA joins its parent's
(anon_vma_link()).  So a walk for any page visits the VMAs of all relatives, whichever process has the page.

It serves to reproduce published figures (`rmaplab reproduce anon-vma-chains`), and is not among the designs that
reports list.  Everything else is anon_vma's; the link of a VMA, which was a list head in the VMA then, is counted as
an AVC.
"""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from rmaplab.mm.vma import VMA
from rmaplab.rmap.anon_vma import AnonVmaRmap


@mypyc_attr(allow_interpreted_subclasses=True)
class AnonVma2004Rmap(AnonVmaRmap):
    """An anon_vma for all relatives."""

    name = "anon_vma_2004"

    def vma_forked(self, parent: VMA, child: VMA) -> None:
        self._clone_fields(parent, child)
