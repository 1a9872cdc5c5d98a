# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures: memory and work of designs over a history, and reports of them."""
