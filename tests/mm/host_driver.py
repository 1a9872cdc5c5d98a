# SPDX-License-Identifier: GPL-2.0-or-later
"""The program inside the witness: system calls and faults on demand, and forks.

Started by host.py as a script of its own, so that its address space is a small one: `host_driver.py SOCKET`.
Every process of the family has a connection to SOCKET; on each, one line is one order and one line the answer.

    call NR A1 .. A6     the system call NR; answers its result, or -errno
    touch ADDR WRITE     reads or writes a byte there, in the kernel: a fault like any, but for the signal
    fork NUMBER          the child says hello with NUMBER; answers its pid
    exit                 no answer

It imports nothing of rmaplab, and touches no memory of the regions under test on its own.
"""

import ctypes
import gc
import itertools
import os
import signal
import socket
import sys

MAP_SHARED = 1
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_NORESERVE = 0x4000
FENCE = 1 << 20  # bytes
LIBRARIES = 0x7000_0000_0000  # they are above this


def main() -> None:
    path = sys.argv[1]
    gc.disable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits: a process that ends is gone at once
    # One CPU: a page in another CPU's batch of new pages has a reference more, and would be copied rather
    # than reused (wp_can_reuse_anon_folio() drains only its own CPU's).
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    libc.mmap.restype = ctypes.c_ulong
    libc.mmap.argtypes = [ctypes.c_ulong] * 6
    zero = os.open("/dev/zero", os.O_RDONLY)
    drain, pipe = os.pipe()

    def call(*args: int) -> int:
        result: int = libc.syscall(*map(ctypes.c_ulong, args))
        return -ctypes.get_errno() if result == -1 else result

    def touch(addr: int, write: int) -> int:
        if write:
            done = libc.read(zero, ctypes.c_ulong(addr), ctypes.c_ulong(1))
        else:
            done = libc.write(pipe, ctypes.c_ulong(addr), ctypes.c_ulong(1))
        if done == 1:
            if not write:
                os.read(drain, 1)
            return 0
        return -ctypes.get_errno()

    fence = raise_fence(libc)
    server = connect(path)
    answer(server, f"hello 1 {os.getpid()} {fence}")
    while True:
        words = server.readline().split()
        if not words or words[0] == "exit":
            os._exit(0)
        if words[0] == "call":
            answer(server, str(call(*map(int, words[1:]))))
        elif words[0] == "touch":
            answer(server, str(touch(int(words[1]), int(words[2]))))
        elif words[0] == "fork":
            pid = os.fork()
            if pid:
                answer(server, str(pid))
            else:
                server.close()
                server = connect(path)
                answer(server, f"hello {words[1]} {os.getpid()} {fence}")


def connect(path: str):  # type: ignore[no-untyped-def]
    """A text stream both ways."""
    link = socket.socket(socket.AF_UNIX)
    link.connect(path)
    stream = link.makefile("rw", buffering=1)
    link.close()
    return stream


def answer(server, line: str) -> None:  # type: ignore[no-untyped-def]
    server.write(line + "\n")
    server.flush()


def raise_fence(libc: ctypes.CDLL) -> int:
    """Fill every gap among the libraries, so that what the kernel places goes below all there is.

    Returns where the fence begins: from there down nothing is mapped, and the fence is shared memory, with
    which no private mapping merges.
    """
    shared = MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE
    libc.mmap(0, FENCE, 0, shared, 2**64 - 1, 0)
    with open("/proc/self/maps") as lines:
        rows = [line.split() for line in lines]
    ranges = [[int(word, 16) for word in row[0].split("-")] for row in rows if row[-1] != "[vsyscall]"]
    above = [pair for pair in ranges if pair[0] >= LIBRARIES][:-1]  # the last is the stack
    for (_, end), (start, _) in itertools.pairwise(above):
        if start > end:
            libc.mmap(end, start - end, 0, shared | MAP_FIXED, 2**64 - 1, 0)
    fence: int = libc.mmap(0, FENCE, 0, shared, 2**64 - 1, 0)
    return fence


if __name__ == "__main__":
    main()
