# SPDX-License-Identifier: GPL-2.0-or-later
"""Text that comes from elsewhere, as the header of a history or the name of a file, made safe to show."""


def printable(text: str) -> str:
    r"""`text` in one line, with every character that is not printable escaped.

    >>> printable("a\x1b[31m\nb")
    'a\\x1b[31m\\nb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
