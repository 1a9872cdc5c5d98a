# SPDX-License-Identifier: GPL-2.0-or-later
"""What `import rmaplab` offers: the laboratory for notebooks and scripts.

machine   a machine to type system calls at, its processes, and what is in their memory
places    the answer of a walk
errors    a system call that failed
arguments what is expected of an argument, where a call failed by one
verbs     compare, record, replay, workload, history
"""
