# SPDX-License-Identifier: GPL-2.0-or-later
"""What all refusals have in common."""


class CannotRun(Exception):
    """What was asked for could not be done; the message is one sentence that says why and what to do.

    The command line prints it and ends with status 2; any other exception is a mistake in a design or in
    rmaplab, and is shown with its traceback.
    """
