# SPDX-License-Identifier: GPL-2.0-or-later
"""Is it right?  Page-table truth, designs held against it and against each other, random histories, bugs put
in on purpose, and the running kernel as a witness.

truth       what the page tables say, and the invariants of the machine
sameness    which VMAs two walks visit
lockstep    all of it, while a history plays
histories   random histories that are hard on a reverse map (strategies: the same for Hypothesis)
mutants     designs that lack one rule each
host        the kernel that this runs on, doing what the machine does
"""
