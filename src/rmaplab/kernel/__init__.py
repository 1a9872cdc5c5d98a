# SPDX-License-Identifier: GPL-2.0-or-later
"""The real kernel as witness: boot one, do a history in it, read its structures, compare with the model."""
