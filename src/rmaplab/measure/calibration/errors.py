# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors that calibration raises."""


from rmaplab.errors import CannotRun


class CalibrationError(CannotRun):
    """This machine cannot be calibrated, or not so; the message says why and what to do."""
