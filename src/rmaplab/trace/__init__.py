# SPDX-License-Identifier: GPL-2.0-or-later
"""Histories: their vocabulary, their file format, how they are recorded, imported and played.

events.py is what can happen, history.py the file.  record.py runs a command under perf or strace; perf.py
and strace.py read what these print, and tell reduce.py, which makes events of it (spaces.py: what it has to
remember).  importing.py does the same with text made elsewhere.  tracer.py and maps.py take and compare
/proc/PID/maps.  play.py puts a history on a machine.
"""
