# SPDX-License-Identifier: GPL-2.0-or-later
"""How the designs that come with rmaplab look: a file for each, in the vocabulary of rmaplab.mm.picture."""
