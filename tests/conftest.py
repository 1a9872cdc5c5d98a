# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings of all tests.

Hypothesis draws the same examples in every run, so that a failure is one for everybody.  `long` draws
many more, other ones each time, and is for a night: HYPOTHESIS_PROFILE=long.

Ctrl-C is listened to, also where the tests themselves run in the background of a shell, which has it ignored:
programs under test inherit that.  Where SIGHUP is ignored, it stays so for nohup's sake, and tests of it are skipped.
"""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile(
    "long",
    parent=settings.get_profile("repeatable"),
    derandomize=False,
    max_examples=2000,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        return
    for item in items:
        case = getattr(item, "callspec", None)
        if case is not None and any(value is signal.SIGHUP or value == "SIGHUP" for value in case.params.values()):
            item.add_marker(pytest.mark.skip("SIGHUP is ignored here, as nohup has it"))
