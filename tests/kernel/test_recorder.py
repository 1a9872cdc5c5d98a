# SPDX-License-Identifier: GPL-2.0-or-later
"""The recorder's BPF programs on each kernel (make test-kernel): its verifier takes them, and its tracepoints have the
parameters that they read."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator

import pytest

from kernel.hands import read_file
from rmaplab.kernel import setup
from rmaplab.kernel.errors import KernelUnavailable
from rmaplab.kernel.guest import Guest
from rmaplab.kernel.lockstep import Witness
from rmaplab.kernel.versions import VERSIONS
from rmaplab.trace import bpf, bpf_events

pytestmark = pytest.mark.skipif(
    not os.environ.get("RMAPLAB_KERNEL"), reason="boots kernels: make test-kernel, or RMAPLAB_KERNEL=1"
)

ATTRIBUTES = 144  # bytes of a bpf(2) call's, with what they point to behind them


@pytest.fixture(scope="module", params=VERSIONS)
def guest(request: pytest.FixtureRequest) -> Iterator[tuple[tuple[int, ...], Guest]]:
    """A guest, and which version it has."""
    try:
        with Witness(setup.need(request.param)) as witness:
            yield tuple(int(part) for part in request.param.split(".")), witness.guest
    except KernelUnavailable as error:
        if os.environ.get("RMAPLAB_REQUIRE_KERNEL"):
            raise
        pytest.skip(f"NOT TESTED: {error}")


def call(guest: Guest, command: int, attributes: bytes, more: bytes = b"") -> int:
    """bpf(2) in the guest."""
    at = guest.poke(0, attributes.ljust(ATTRIBUTES, b"\0") + more)
    return guest.call(0, 321, command, at, ATTRIBUTES)


def test_each_kernel_takes_the_programs_and_has_what_they_read(guest: tuple[tuple[int, ...], Guest]) -> None:
    """Before 6.13 mmap_lock's tracepoints have the memcg's path; from 6.16 on a task's end says whether it is the last
    of its process.  A raw tracepoint refuses a program that reads beyond its parameters."""
    version, kernel = guest
    forms = {
        "followed": (bpf.HASH, 4, bpf_events._KEPT, 64, bpf.NO_PREALLOC), "lost": (bpf.ARRAY, 4, 8, 1, 0),
        "ring": (bpf.RINGBUF, 0, 0, 4096, 0),
    }  # fmt: skip
    maps = {name: call(kernel, bpf._MAP_CREATE, struct.pack("<5I", *form)) for name, form in forms.items()}
    if -38 in maps.values():
        pytest.skip("NOT TESTED: this kernel has no bpf(2)")
    assert min(maps.values()) > 0, maps

    def load(kind: int, text: str) -> int:
        code, at = bpf.assemble(text, maps), kernel.scratch + ATTRIBUTES
        attributes = struct.pack("<IIQQ", kind, len(code) // 8, at + 8, at)
        program = call(kernel, bpf._PROG_LOAD, attributes, b"GPL".ljust(8, b"\0") + code)
        assert program > 0, f"{os.strerror(-program)}: {text}"
        return program

    def attach(name: str, program: int) -> int:
        attributes = struct.pack("<QI", kernel.scratch + ATTRIBUTES, program)
        return call(kernel, bpf._RAW_TRACEPOINT_OPEN, attributes, name.encode() + b"\0")

    group_dead, memcg_path = version >= (6, 16), version < (6, 13)
    for name, text in (
        ("page_fault_user", bpf_events._fault(user=True)),
        ("page_fault_kernel", bpf_events._fault(user=False)),
        ("mm_page_alloc", bpf_events._ALLOCATE),
        ("sys_exit", bpf_events._return()),
        ("mmap_lock_acquire_returned", bpf_events._lock(2 if memcg_path else 1)),
        ("sched_process_exec", bpf_events._EXECUTE),
        ("sched_process_exit", bpf_events._end(group_dead)),
    ):
        assert attach(name, load(bpf.RAW_TRACEPOINT, text)) > 0, name
    if not memcg_path:
        assert attach("mmap_lock_acquire_returned", load(bpf.RAW_TRACEPOINT, bpf_events._lock(2))) < 0
    if not group_dead:
        assert attach("sched_process_exit", load(bpf.RAW_TRACEPOINT, bpf_events._end(True))) < 0

    kernel._mount("tracefs", "/sys/kernel/tracing")
    formats = {
        name: dict(re.findall(r"\sfield:[^;]*?(\w+)(?:\[\w*\])?;\s*offset:(\d+);", read_file(
            kernel, f"/sys/kernel/tracing/events/{name}/format")))
        for name in ("mmap_lock/mmap_lock_acquire_returned", "sched/sched_process_exit", "task/task_newtask")
    }  # fmt: skip
    lock, end, new = formats.values()
    assert ("memcg_path" in lock, "group_dead" in end) == (memcg_path, group_dead)
    load(bpf.TRACEPOINT, bpf_events._new_task(int(new["pid"]), int(new["clone_flags"])))
