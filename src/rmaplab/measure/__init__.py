# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures: what designs hold and do over a history, and how that is reported."""
