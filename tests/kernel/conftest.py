# SPDX-License-Identifier: GPL-2.0-or-later
"""`witness`: a kernel that has booted, one for each of the module's `KERNELS`, or of those that a test is marked with.
"""

import os
from collections.abc import Iterator

import pytest

from rmaplab.kernel import setup
from rmaplab.kernel.errors import KernelUnavailable
from rmaplab.kernel.lockstep import Witness


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "witness" in metafunc.fixturenames:
        marked = metafunc.definition.get_closest_marker("kernels")
        kernels = metafunc.module.KERNELS if marked is None else marked.args
        metafunc.parametrize("witness", kernels, indirect=True, scope="module")


@pytest.fixture(scope="module")
def witness(request: pytest.FixtureRequest) -> Iterator[Witness]:
    try:
        if setup.installed(request.param) is None:
            setup.set_up(request.param, print)
        with Witness(setup.need(request.param)) as witness:
            yield witness
    except KernelUnavailable as error:
        if os.environ.get("RMAPLAB_REQUIRE_KERNEL"):
            raise
        pytest.skip(str(error))
