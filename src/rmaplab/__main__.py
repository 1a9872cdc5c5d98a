# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the program `rmaplab` begins, also as `python -m rmaplab`: nothing is imported before Ctrl-C is heard."""

import os
import signal
from types import FrameType


def main() -> None:
    """The program `rmaplab`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored: nohup, or &
        signal.signal(signal.SIGINT, _too_early)
        from rmaplab.cli import main as run

        signal.signal(signal.SIGINT, signal.default_int_handler)
    else:
        from rmaplab.cli import main as run
    run()


def _too_early(_signal: int, _frame: FrameType | None) -> None:
    """An exception would be lost in what is being imported; nothing has been begun that had to be undone."""
    os.write(2, b"rmaplab: interrupted, so there is no result\n")
    os._exit(2)


if __name__ == "__main__":
    main()
