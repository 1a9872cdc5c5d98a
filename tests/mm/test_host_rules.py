# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of the running kernel's profile that random histories do not reach, tried on it (host_rules.py)."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from rmaplab.mm.profile import profile_for


def test_the_profile_says_what_the_running_kernel_does() -> None:
    profile, own = profile_for(os.uname().release)
    if not own:
        pytest.skip(f"no profile for {os.uname().release}")
    program = str(Path(__file__).with_name("host_rules.py"))
    done = subprocess.run([sys.executable, "-P", program], capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    if "mm_ids" not in seen:
        warnings.warn(f"of the running kernel only {', '.join(seen)} could be seen", stacklevel=1)
    assert seen == {rule: getattr(profile, rule) for rule in seen}
