# SPDX-License-Identifier: GPL-2.0-or-later
"""What calibration raises."""


class CalibrationError(RuntimeError):
    """This machine cannot be calibrated, or not so; the message says why and what to do."""
