# SPDX-License-Identifier: GPL-2.0-or-later
"""Words to print: text from elsewhere (the header of a history, the name of a file) made safe, and counted nouns."""


def printable(text: str) -> str:
    r"""`text` in one line, with every character that is not printable escaped.

    >>> printable("a\x1b[31m\nb")
    'a\\x1b[31m\\nb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def slug(text: str) -> str:
    """`text` as the name of a file or an anchor.

    >>> slug("anon_vma vma->anon_vma")
    'anon-vma-vma-anon-vma'
    """
    return "-".join("".join(c if c.isalnum() else " " for c in text).split())


def plural(count: int, noun: str) -> str:
    """`count` and `noun`, in the plural where it has to be.

    >>> plural(1, "process"), plural(1_000, "process"), plural(2, "page")
    ('1 process', '1,000 processes', '2 pages')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}{'es' if noun.endswith('s') else 's'}"
