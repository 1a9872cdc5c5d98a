# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the program `rmaplab` begins, also as `python -m rmaplab`: nothing is imported before Ctrl-C is heard.

SIGTERM and SIGHUP are the same as Ctrl-C: what the program has begun (a guest, workers, half a file) it ends before it
goes.
"""

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """The program `rmaplab`."""
    _open_what_is_closed()
    heard = [  # not where it is ignored: nohup, or &
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
    ]
    for number in heard:
        signal.signal(number, _too_early)
    from rmaplab.commands.frame import main as run

    for number in heard:
        signal.signal(number, signal.default_int_handler)
    run()


def _open_what_is_closed() -> None:
    """Standard streams that are closed (`<&-`) lead to /dev/null, or the next file that is opened would be one of them.
    What is written to stdout is an error there, as it was before."""
    for number, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, flags), number)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))


def _too_early(_signal: int, _frame: FrameType | None) -> None:
    """An exception would be lost in what is being imported; nothing has been begun that had to be undone."""
    os.write(2, b"rmaplab: interrupted, so there is no result\n")
    os._exit(2)


if __name__ == "__main__":
    main()
