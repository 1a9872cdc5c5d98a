# SPDX-License-Identifier: GPL-2.0-or-later
"""The second witness: Linux's own mm/vma.c, built in user space from a kernel's sources (native.c, shim.h).

A thousand times faster than a guest, and about VMAs only: everything of mm/vma.c, mm/vma_init.c, mm/vma_exec.c and
the maple tree is the tree's; what is above and below it is ours.
"""
