# SPDX-License-Identifier: GPL-2.0-or-later
"""Is it right?  Page-table truth, designs held against it and against each other, random histories, bugs put
in on purpose, and the running kernel as a witness.

truth       what the page tables say, and the invariants of the machine
sameness    which VMAs two walks visit
lockstep    all of it, while a history plays
histories   random histories that are hard on a reverse map (strategies: the same for Hypothesis)
verify      thousands of random histories on all CPUs, and the shortest that fails (batching: in runs, one by one)
mutants     designs and machines that lack one rule each (race_mutants: those that only a race shows)
mutation    each of them looked for, and nothing found without it
host        the kernel that this runs on, doing what the machine does
"""
