# SPDX-License-Identifier: GPL-2.0-or-later
"""The explorer: a history as pictures, on a page (`rmaplab explore`), in a terminal (`rmaplab show`) and in
notebooks.

    machine ──camera─▶ parts ──film──▶ steps ──┬──▶ html    one self-contained page
                                               ├──▶ text    the same in a terminal
                                               └──▶ notebook

A *part* is one object in a picture: a process, a VMA, a folio, an anon_vma, a record of a remap tree.  The
state of everything after a step is a dictionary of parts by key, and a step is what it changed there.  All
that a reader is told in words is written here in Python; the page only draws.
"""
