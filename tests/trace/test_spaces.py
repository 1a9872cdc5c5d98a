# SPDX-License-Identifier: GPL-2.0-or-later
"""What a recorder knows of an address space follows the calls."""

from rmaplab.trace.spaces import Range, Space

PAGE = 4096


def ranges(space: Space) -> list[tuple[int, int]]:
    return [(range.start // PAGE, range.end // PAGE) for range in space.ranges]


def test_a_move_of_several_ranges_keeps_the_gaps_between_and_behind_them() -> None:
    """mm/mremap.c remap_move(), since 6.17: only what does not change its length may be several VMAs."""
    space = Space(0)
    for start, end in ((0, 2), (4, 6)):
        space.insert(Range(start * PAGE, end * PAGE, 3, True))
    space.move(0, 8 * PAGE, 100 * PAGE, 8 * PAGE, keep=False)
    assert ranges(space) == [(100, 102), (104, 106)]


def test_a_range_grows_where_it_goes() -> None:
    space = Space(0)
    space.insert(Range(0, 2 * PAGE, 3, True))
    space.move(0, 2 * PAGE, 100 * PAGE, 5 * PAGE, keep=False)
    assert ranges(space) == [(100, 105)]
