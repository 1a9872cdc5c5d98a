# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors between rmaplab and a real kernel."""

from __future__ import annotations

from rmaplab.errors import CannotRun


class KernelUnavailable(CannotRun):
    """Something that is needed is missing (QEMU, drgn, a package, the network, permission): the message says
    in one sentence what, and what would help.  Commands end with status 2."""


class GuestError(CannotRun):
    """A guest did not do what it was told, or does not answer any more."""
