# SPDX-License-Identifier: GPL-2.0-or-later
"""Histories: their vocabulary, their file format, how they are recorded, imported and played.

events.py has the operations, history.py the file.  record.py runs a command under BPF programs
(bpf_events.py, which bpf.py assembles), perf events (perf_events.py) or strace (strace.py).  collector.py empties the
kernel's rings, timeline.py puts what was in them in order, and reduce.py turns them into events (spaces.py: its
memory of address spaces).  importing.py, with perf_text.py, does the same with text made elsewhere.  tracer.py and
maps.py take and compare /proc/PID/maps.  play.py puts a history on a machine.
"""
