# SPDX-License-Identifier: GPL-2.0-or-later
"""Calibration: small programs on this machine's kernel and in the model, and the costs that make both agree."""
