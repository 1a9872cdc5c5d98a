# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine: address spaces, VMAs, page tables, folios, system calls.

No reverse-map policy here: reverse_map.py declares the interface of a design.
"""
