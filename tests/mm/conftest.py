# SPDX-License-Identifier: GPL-2.0-or-later
"""`space`: a machine for statements about Linux; each test that uses it runs with the rules of 7.3 and of
6.12, and side by side with the running kernel, where that can be had."""

from collections.abc import Iterator

import pytest

from mm.host import HostUnavailable
from mm.space import Space, begin


@pytest.fixture(params=["7.3", "6.12", "running kernel"])
def space(request: pytest.FixtureRequest) -> Iterator[Space]:
    try:
        space = begin(witness=True) if request.param == "running kernel" else begin(request.param)
    except HostUnavailable as why:
        pytest.skip(str(why))
    yield space
    space.close()


@pytest.fixture
def model() -> Iterator[Space]:
    """For what no program can see or ask for, by itself: the machine alone."""
    space = begin()
    yield space
    space.close()
