# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest: a kernel in QEMU, whose processes act on our orders.

The guest's first process (guest/init.c) is a server of system calls behind the second serial port: what
follows here decides which calls are made, from mounting /proc on.  QEMU's monitor (QMP, on two sockets: one
for us, one for drgn) stops the guest while it is read.  Guest memory is a file that both sides map.

What QEMU starts once goes on as often as asked for (started.py).

QEMU emulates the processor (TCG) unless told otherwise: /dev/kvm may be there and still not run a kernel.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import shlex
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rmaplab.kernel.errors import GuestError, KernelUnavailable
from rmaplab.kernel.image import startable
from rmaplab.kernel.initramfs import archive
from rmaplab.kernel.qmp import Monitor
from rmaplab.kernel.started import Started
from rmaplab.trace.calls import CALLS

# Beyond the system calls: guest/init.c, enum.
TOUCH, FORK, EXEC, SPAWN, POKE, SCRATCH, PEEK, FILL = range(0x1000, 0x1008)

PROGRAM: Final = (0x1000_0000, 0x2000_0000)  # where init.c is linked: no history may map anything there
SLOTS: Final = 120
KSM: Final = "/sys/kernel/mm/ksm"
THP: Final = "/sys/kernel/mm/transparent_hugepage"
GROUP: Final = "/cgroup/history"  # control group of all workers

_SYS: Final = {
    **{call.name: call.number for call in CALLS.values()},
    "read": 0, "write": 1, "open": 2, "close": 3, "ioctl": 16, "exit": 60, "wait4": 61, "ftruncate": 77,
    "mkdir": 83, "mount": 165, "swapon": 167, "memfd_create": 319, "finit_module": 313, "dup2": 33, "pwrite": 18,
    "chroot": 161, "chdir": 80, "socket": 41, "sync": 162, "close_range": 436,
}  # fmt: skip

_MS_RDONLY: Final = 1
_MS_REMOUNT: Final = 32
_CLOSE_RANGE_CLOEXEC: Final = 4
_PR_SET_MEMORY_MERGE: Final = 67
_SIOCSIFFLAGS: Final = 0x8914
_RNDADDENTROPY: Final = 0x40085203
_RNDRESEEDCRNG: Final = 0x5207
_IFF_UP: Final = 1
ROOT: Final = "/root"  # where the disk's file system is

_SWAP_KIB: Final = 65536
_MODULE_PARAMETERS: Final = {"brd": f"rd_nr=1 rd_size={_SWAP_KIB}".encode()}

# The second line takes away what would be a third of the time until init starts, and concerns no memory.
_COMMAND_LINE: Final = (
    "console=ttyS0 quiet panic=-1 nokaslr numa_balancing=disable mitigations=off transparent_hugepage=never"
    " random.trust_cpu=on no_timer_check cryptomgr.notests initcall_blacklist=load_system_certificate_list"
    f" slab_nomerge brd.rd_nr=1 brd.rd_size={_SWAP_KIB}"
)

_MEMORY_STAYS: Final = {"capability": "x-ignore-shared", "state": True}  # in its files
_STARTING: Final = 120.0  # seconds that QEMU may take to make its sockets, on a busy machine


def _numa_node(number: int, megabytes: int, directory: Path) -> list[str]:
    """Two nodes, so that move_pages() can migrate from one to the other; the processor is in the first."""
    path = directory / f"memory{number}"
    return [
        "-object", f"memory-backend-file,id=memory{number},size={megabytes}M,mem-path={path},share=on",
        "-numa", f"node,nodeid={number},memdev=memory{number}" + (",cpus=0" if number == 0 else ""),
    ]  # fmt: skip


class Guest:
    """A running guest.  A context manager: QEMU ends with it.

    image:   a bzImage
    init:    the compiled guest/init.c
    modules: name -> contents of a kernel module (modules.py), loaded in this order
    memory:  MiB
    disk:    an image of an ext4 file system, mounted at ROOT
    keep:    what the guest writes to the disk is to stay there
    """

    def __init__(
        self,
        image: Path,
        init: Path,
        modules: dict[str, bytes],
        memory: int = 512,
        command_line: str = "",
        accelerator: str = "tcg",
        disk: Path | None = None,
        keep: bool = False,
    ) -> None:
        qemu = shutil.which("qemu-system-x86_64")
        if qemu is None:
            raise KernelUnavailable(
                "QEMU is missing: install qemu-system-x86_64 (Debian: package qemu-system-x86)."
            )
        self.memory_size: Final = memory << 20
        self._stack: Final = contextlib.ExitStack()
        self.directory: Final = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="rmaplab-")))
        try:
            self._start(qemu, image, init, modules, memory, command_line, accelerator, disk, keep)
        except BaseException:
            self.close()
            raise

    def _start(
        self, qemu: str, image: Path, init: Path, modules: dict[str, bytes], memory: int, command_line: str,
        accelerator: str, disk: Path | None, keep: bool,
    ) -> None:  # fmt: skip
        directory = self.directory
        files = {"init": init.read_bytes()} | {f"{name}.ko": data for name, data in modules.items()}
        (directory / "initramfs").write_bytes(archive(files))
        self.qmp_socket = directory / "drgn.sock"
        command = [
            qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", accelerator,
            "-machine", "pc", "-smp", "1", "-m", f"{memory}M", "-device", "vmcoreinfo",
            *_numa_node(0, memory // 2, directory), *_numa_node(1, memory // 2, directory),
            "-kernel", str(startable(image, directory)), "-initrd", str(directory / "initramfs"),
            "-append", f"{_COMMAND_LINE} {command_line}".strip(),
            "-serial", f"file:{directory / 'console'}",
            "-chardev", f"socket,id=wire,path={directory / 'wire.sock'},server=on,wait=off",
            "-serial", "chardev:wire",
            "-qmp", f"unix:{directory / 'control.sock'},server=on,wait=off",
            "-qmp", f"unix:{self.qmp_socket},server=on,wait=off",
        ]  # fmt: skip
        if disk is not None:
            command += ["-drive", f"file={disk},format=raw,if=virtio,snapshot={'off' if keep else 'on'}"]
        started = Started(command, directory) if disk is None and accelerator == "tcg" else None
        goes_on = started is not None and started.exists()
        if started is not None and goes_on:
            started.copy_to(directory)
            command += ["-incoming", "defer"]
        self._qemu = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._wire = self._connect(directory / "wire.sock")
        self._control = Monitor(self._connect(directory / "control.sock"))
        self.memory: list[mmap.mmap] = []  # of the two nodes, one after the other from address 0
        for node in (0, 1):
            with (directory / f"memory{node}").open("r+b") as file:
                self.memory.append(mmap.mmap(file.fileno(), self.memory_size // 2))
        self.free_slots = list(range(SLOTS - 1, 0, -1))
        if started is not None and goes_on:
            try:
                self._go_on(started)
            except GuestError:
                started.discard()
                raise
            return
        if self._reply(600.0) != 0:
            raise GuestError(f"the guest's init did not start; its console says:\n{self.console()}")
        self.scratch = self.call(0, SCRATCH)
        self._prepare(modules)
        if started is not None:
            self._save(started)
        if disk is not None:
            if not self.has_file("/dev/vda"):
                raise KernelUnavailable(
                    "the guest's kernel sees no disk: virtio_pci and virtio_blk have to be built in, or be among its"
                    " modules, with what they depend on."
                )
            self._mount("ext4", ROOT, "/dev/vda")

    def _save(self, started: Started) -> None:
        """Keep the state as it is now, for others to go on from."""
        being_made = started.begin()
        with self.stopped():
            self.monitor("migrate-set-capabilities", capabilities=[_MEMORY_STAYS])
            self.monitor("migrate", uri=f"exec:cat > {shlex.quote(str(being_made / 'state'))}")
            while (status := self.monitor("query-migrate").get("status")) not in ("completed", "failed"):
                time.sleep(0.01)
            if status == "completed":
                started.end(being_made, self.directory)

    def _go_on(self, started: Started) -> None:
        """Be where `started` was; with another seed for all that is random, where execve() puts things among it."""
        self.monitor("migrate-set-capabilities", capabilities=[_MEMORY_STAYS])
        self.monitor("migrate-incoming", uri=f"exec:cat {shlex.quote(str(started.state))}")
        while self.monitor("query-status")["status"] == "inmigrate":
            time.sleep(0.01)
        self.monitor("cont")
        self.scratch = self.call(0, SCRATCH)
        descriptor = self.open(0, "/dev/urandom", os.O_WRONLY)
        seed = self.poke(0, struct.pack("<ii", 320, 40) + os.urandom(40))  # struct rand_pool_info
        for request in ((_RNDADDENTROPY, seed), (_RNDRESEEDCRNG,)):
            if self.syscall(0, "ioctl", descriptor, *request):
                raise GuestError("the guest's kernel takes no new seed")
        self.syscall(0, "close", descriptor)

    def _connect(self, path: Path) -> socket.socket:
        deadline = time.monotonic() + _STARTING
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
                return self._stack.enter_context(connection)
            except OSError:
                connection.close()
                if self._qemu.poll() is not None or time.monotonic() > deadline:
                    output = self._qemu.stderr.read() if self._qemu.stderr and self._qemu.poll() is not None else ""
                    raise KernelUnavailable(f"QEMU did not start: {output.strip() or 'no answer'}") from None
                time.sleep(0.01)

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End QEMU and remove its files."""
        qemu = getattr(self, "_qemu", None)
        if qemu is not None:
            qemu.kill()
            qemu.wait()
            if qemu.stderr is not None:
                qemu.stderr.close()
        self._stack.close()

    def console(self) -> str:
        """What the kernel printed."""
        return (self.directory / "console").read_text(errors="replace")

    # The monitor

    def monitor(self, command: str, **arguments: Any) -> Any:
        """One QMP command."""
        return self._control.command(command, **arguments)

    @contextlib.contextmanager
    def stopped(self) -> Any:
        """The guest stands still inside the with statement."""
        self.monitor("stop")
        try:
            yield
        finally:
            self.monitor("cont")

    def let_go_on(self, seconds: float) -> None:
        """The guest, which stands still, goes on for so long."""
        self.monitor("cont")
        time.sleep(seconds)
        self.monitor("stop")

    # Calls

    def call(self, slot: int, number: int, *arguments: int, timeout: float = 300.0) -> int:
        """Let the process in `slot` make a system call (or one of init.c's own operations)."""
        self._send(slot, number, *arguments)
        return self._reply(timeout)

    def _send(self, slot: int, number: int, *arguments: int) -> None:
        words = (slot, number, *(argument & 0xFFFF_FFFF_FFFF_FFFF for argument in arguments))
        self._wire.sendall((" ".join(f"{word:x}" for word in words) + "\n").encode())

    def syscall(self, slot: int, name: str, *arguments: int) -> int:
        return self.call(slot, _SYS[name], *arguments)

    def _reply(self, timeout: float) -> int:
        line = b""
        deadline = time.monotonic() + timeout
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._wire], [], [], max(0.0, deadline - time.monotonic()))
            data = self._wire.recv(1) if ready else b""
            if not data:
                raise GuestError(f"the guest does not answer; its console says:\n{self.console()[-4000:]}")
            line += data
        return int(line, 16)

    def poke(self, slot: int, data: bytes) -> int:
        """Store `data` in the scratch area of the process in `slot`; returns its address there."""
        data += b"\0" * (-len(data) % 40)
        for at in range(0, len(data), 40):
            words = [int.from_bytes(data[i : i + 8], "little") for i in range(at, at + 40, 8)]
            self.call(slot, POKE, at // 8, *words)
        return self.scratch

    def spawn(self) -> tuple[int, int]:
        """A new process, right after execve().  Returns its slot and pid."""
        slot = self.free_slots.pop()
        first = self.call(0, SPAWN, slot)
        return slot, first + self._reply(300.0)  # one of the two is 0

    def exec(self, slot: int) -> None:
        """execve() in the process in `slot`."""
        self.call(slot, EXEC)

    def fork(self, slot: int, flags: int) -> tuple[int, int]:
        """Returns the child's slot and pid."""
        if not self.free_slots:
            raise GuestError(f"more than {SLOTS - 1} processes at once")
        child = self.free_slots.pop()
        pid = self.call(slot, FORK, child, flags)
        if pid < 0:
            raise GuestError(f"fork failed with {pid}")
        return child, pid

    def exit(self, slot: int, pid: int) -> None:
        """Let a process exit, and wait until its memory is gone."""
        self._send(slot, _SYS["exit"], 0)
        if self.syscall(0, "wait4", pid, 0, 0, 0) != pid:
            raise GuestError(f"waiting for process {pid} failed")
        self.free_slots.append(slot)

    # Files

    def has_file(self, path: str) -> bool:
        descriptor = self.open(0, path, os.O_RDONLY)
        if descriptor >= 0:
            self.syscall(0, "close", descriptor)
        return descriptor >= 0

    def write_file(self, path: str, contents: str, must: bool = True) -> int:
        """Let process 1 write to a file.  Returns the result of write(2) or of open(2) if that failed."""
        descriptor = self.open(0, path, os.O_WRONLY)
        if descriptor < 0:
            result = descriptor
        else:
            data = contents.encode()
            result = self.syscall(0, "write", descriptor, self.poke(0, data), len(data))
            self.syscall(0, "close", descriptor)
        if must and result < 0:
            raise GuestError(f"the guest cannot write {contents!r} to {path}: {os.strerror(-result)}")
        return result

    def open(self, slot: int, path: str, flags: int) -> int:
        return self.syscall(slot, "open", self.poke(slot, path.encode() + b"\0"), flags, 0o600)

    def _mount(self, kind: str, at: str, source: str = "none", flags: int = 0) -> None:
        what, where, device = self._strings(0, kind, at, source)
        result = self.syscall(0, "mount", device, where, what, flags, 0)
        if result:
            raise GuestError(f"the guest cannot mount {kind} at {at}: {os.strerror(-result)}")

    def _strings(self, slot: int, *texts: str) -> list[int]:
        """Store strings in the scratch area of the process in `slot`; returns their addresses."""
        data = [text.encode() + b"\0" for text in texts]
        at = self.poke(slot, b"".join(data))
        return [at + sum(len(before) for before in data[:i]) for i in range(len(data))]

    # Programs of the disk's

    def enter_userland(self) -> None:
        """Make the disk a place to run programs in: as the kernel would have it, not as our histories need it."""
        for kind, at in (
            ("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/tmp"), ("tmpfs", "/run"),
        ):  # fmt: skip
            self._mount(kind, ROOT + at)
        self.syscall(0, "mkdir", self.poke(0, f"{ROOT}/dev/shm\0".encode()), 0o1777)
        self._mount("tmpfs", f"{ROOT}/dev/shm")
        self._mount("cgroup2", f"{ROOT}/sys/fs/cgroup")
        self.write_file("/sys/kernel/debug/fault_around_bytes", "65536")
        self.write_file("/proc/sys/vm/page-cluster", "3")
        self.write_file(f"{THP}/enabled", "always")
        for name, value in (("pages_to_scan", 200), ("sleep_millisecs", 20), ("max_page_sharing", 256)):
            self.write_file(f"{KSM}/{name}", str(value), must=False)
        self.write_file(f"{KSM}/run", "1", must=False)
        descriptor = self.syscall(0, "socket", 2, 2, 0)
        request = b"lo".ljust(16, b"\0") + _IFF_UP.to_bytes(2, "little")
        self.syscall(0, "ioctl", descriptor, _SIOCSIFFLAGS, self.poke(0, request))
        self.syscall(0, "close", descriptor)

    def start(
        self, program: str, *arguments: str, environment: Sequence[str] = (), mergeable: bool = False
    ) -> None:
        """Run a program of the disk's in a process of its own.  Its descriptor 3 is the wire: see `hear`.
        `mergeable`: KSM may merge what it and its children have (where the kernel knows PR_SET_MEMORY_MERGE)."""
        slot, _ = self.spawn()
        if mergeable:
            self.syscall(slot, "prctl", _PR_SET_MEMORY_MERGE, 1, 0, 0, 0)
        self.syscall(slot, "chroot", self.poke(slot, f"{ROOT}\0".encode()))
        self.syscall(slot, "chdir", self.poke(slot, b"/\0"))
        self.syscall(slot, "close_range", 4, 0xFFFF_FFFF, _CLOSE_RANGE_CLOEXEC)
        texts = [program, program, *arguments, *environment]
        first = self.scratch + 8 * (len(texts) + 2)  # the two vectors, each with a zero at its end, come before
        at = [first + sum(len(text.encode()) + 1 for text in texts[:i]) for i in range(len(texts))]
        split = 2 + len(arguments)
        vectors = [*at[1:split], 0, *at[split:], 0]
        data = b"".join(text.encode() + b"\0" for text in texts)
        self.poke(slot, struct.pack(f"<{len(vectors)}Q", *vectors).ljust(first - self.scratch, b"\0") + data)
        self._send(slot, _SYS["execve"], at[0], self.scratch, self.scratch + 8 * split)

    def hear(self, timeout: float) -> int:
        """The next number that a program says on the wire; a negative one if it could not be started."""
        return self._reply(timeout)

    def settle_disk(self) -> None:
        """Have all on the disk that was written."""
        self.syscall(0, "sync")
        self._mount("ext4", ROOT, "/dev/vda", _MS_REMOUNT | _MS_RDONLY)

    def _swap_on(self) -> None:
        """Swap to a RAM disk (what mkswap writes: include/linux/swap.h, union swap_header)."""
        device = self.open(0, "/dev/ram0", os.O_RDWR)
        for at, data in (
            (1024, struct.pack("<III", 1, (_SWAP_KIB >> 2) - 1, 0)),
            (4086, b"SWAPSPACE2"),
        ):
            self.syscall(0, "pwrite", device, self.poke(0, data), len(data), at)
        self.syscall(0, "close", device)
        result = self.syscall(0, "swapon", self.poke(0, b"/dev/ram0\0"), 0)
        if result:
            raise GuestError(f"the guest cannot swap: {os.strerror(-result)}")

    def _prepare(self, modules: Sequence[str] | dict[str, bytes]) -> None:
        for kind, at in (("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("ramfs", "/files")):
            self._mount(kind, at)
        self._mount("debugfs", "/sys/kernel/debug")
        self._mount("cgroup2", "/cgroup")
        for name in modules:
            descriptor = self.open(0, f"/{name}.ko", os.O_RDONLY)
            self.poke(0, _MODULE_PARAMETERS.get(name, b"") + b"\0")
            result = self.syscall(0, "finit_module", descriptor, self.scratch, 0)
            if result:
                raise KernelUnavailable(
                    f"the guest's kernel does not take {name}.ko ({os.strerror(-result)}): give --modules the tree of"
                    " the very kernel that --image boots."
                )
            self.syscall(0, "close", descriptor)
        self.write_file("/cgroup/cgroup.subtree_control", "+memory")
        self.syscall(0, "mkdir", self.poke(0, f"{GROUP}\0".encode()), 0o755)
        # A fault maps the page that was touched and no other; swap-in reads no page but the one asked for.
        self.write_file("/sys/kernel/debug/fault_around_bytes", "4096")
        self.write_file("/proc/sys/vm/page-cluster", "0")
        self.write_file("/proc/sys/vm/overcommit_memory", "1")
        # ksmd scans when it is told to, all of it at once, and lets any number of places share a page.
        for name, value in (("pages_to_scan", 1 << 20), ("sleep_millisecs", 0), ("max_page_sharing", 1 << 20)):
            self.write_file(f"{KSM}/{name}", str(value), must=False)
        self.write_file(f"{KSM}/smart_scan", "0", must=False)  # since 6.7
        # khugepaged looks around once, when it begins; folios of 2 MiB are worth looking for room for them.
        self.write_file(f"{THP}/khugepaged/scan_sleep_millisecs", str((1 << 32) - 1), must=False)
        self.write_file(f"{THP}/khugepaged/pages_to_scan", "1", must=False)
        # With little memory, neither that nor the zero page of that size is in use by itself (hugepage_init()).
        self.write_file(f"{THP}/defrag", "always", must=False)
        self.write_file(f"{THP}/use_zero_page", "1", must=False)
        for module, path, purpose in (
            ("qemu_fw_cfg", "/sys/firmware/qemu_fw_cfg/rev", "tells from outside where its structures are"),
            ("brd", "/dev/ram0", "it swaps to"),
        ):  # fmt: skip
            if not self.has_file(path):
                raise KernelUnavailable(
                    f"the guest's kernel lacks {module}, which {purpose}: it is not built in, so give --modules a tree"
                    f" that has {module}.ko (.xz, .zst, .gz)."
                )
        self._swap_on()
