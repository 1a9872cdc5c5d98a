# SPDX-License-Identifier: GPL-2.0-or-later
"""Speed and memory, held against bars: `make bench`."""
