#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Record programs that nobody prepared for it, and see that each recording is right: `scripts/record_programs.py`.

A program is recorded with --check.  Right is: nothing lost, all calls followed, the machine's VMAs those of
/proc/PID/maps in every process, all results as recorded, and every walk of the designs complete.  Or the recorder
refuses in a sentence.  What is not installed is skipped, and said.  --stressors takes stress-ng's for memory and
processes instead.  --markdown F writes the table to F.  Needs root (perf events, namespaces, nginx's
user); servers listen on the loopback only.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from rmaplab.errors import CannotRun
from rmaplab.measure.comparison import Plan, compare
from rmaplab.mm.profile import profile_for
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.trace.record import record

Prepare = Callable[[Path], list[str]]


class Program(msgspec.Struct, frozen=True):
    """What is recorded.

    needs:   the command that has to be there
    prepare: fills a directory, and returns the command
    check:   whether its processes are traced: what traces others cannot be
    """

    what: str
    needs: str
    prepare: Prepare
    check: bool = True


def shell(script: str) -> Prepare:
    """A shell script that runs in the directory."""
    return lambda directory: ["/bin/sh", "-ec", f"cd {directory}\n{script}"]


def stressor(name: str, seconds: int) -> Prepare:
    options = ["-t", f"{seconds}s", "-q", "--oom-avoid", "--skip-silent"]
    return lambda directory: ["stress-ng", f"--{name}", "1", *options, "--temp-path", str(directory)]


def python(text: str) -> Prepare:
    def prepare(directory: Path) -> list[str]:
        (directory / "program.py").write_text(text)
        return [sys.executable, "-S", str(directory / "program.py")]

    return prepare


_WORKERS: Final = """
const { Worker, isMainThread } = require('node:worker_threads');
if (isMainThread) for (let i = 0; i < 4; i++) new Worker(__filename);
else { let held = []; for (let i = 0; i < 200; i++) held.push(new Array(2000).fill(i)); }
"""


def _node(directory: Path) -> list[str]:
    (directory / "workers.js").write_text(_WORKERS)
    return ["node", str(directory / "workers.js")]


_NGINX: Final = """
worker_processes 2; pid {0}/pid; error_log {0}/error.log; daemon off;
events {{ worker_connections 64; }}
http {{ access_log off; client_body_temp_path {0}/t; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;
  uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;
  server {{ listen 127.0.0.1:18089; root {0}; }} }}
"""
_NGINX_LOAD: Final = """
nginx -c $PWD/nginx.conf 2>/dev/null & server=$!
until [ -s pid ] && python3 -S -c 'import socket; socket.create_connection(("127.0.0.1", 18089)).close()' 2>/dev/null
do kill -0 $server; sleep 0.1; done
python3 -S -c '
import socket
for i in range(400):
    with socket.create_connection(("127.0.0.1", 18089)) as s:
        s.sendall(b"GET /page HTTP/1.0\\r\\n\\r\\n")
        while s.recv(65536): pass
' & load=$!
for i in 1 2 3; do sleep 0.2; kill -HUP $server; done
wait $load; kill -QUIT $server; wait $server
"""


def _nginx(directory: Path) -> list[str]:
    directory.chmod(0o755)
    (directory / "nginx.conf").write_text(_NGINX.format(directory))
    (directory / "page").write_bytes(b"x" * 300_000)
    return shell(_NGINX_LOAD)(directory)


_GIT: Final = """
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b HOME=$PWD
git init -q repository && cd repository
for i in 1 2 3 4 5; do seq $i 3000 >file$i; git add . && git commit -qm $i; done
git gc -q --aggressive; git log -p | sha1sum
"""
_SQLITE: Final = """
sqlite3 base 'create table t(a integer primary key, b text);
with recursive n(i) as (select 1 union all select i+1 from n where i<60000) insert into t select i, hex(i*i) from n;
create index u on t(b); select count(*), max(b) from t where b like "3%"; vacuum;'
"""
_C: Final = """
for f in a b c d; do echo "#include <stdio.h>
int $f(int n) { return n < 2 ? n : $f(n - 1) + $f(n - 2); }" >$f.c; done
echo 'int a(int), b(int), c(int), d(int); int main(void) { return a(9) + b(9) - c(9) - d(9); }' >main.c
printf 'main: main.o a.o b.o c.o d.o\\n\\tcc -o $@ $^\\n%%.o: %%.c\\n\\tcc -O2 -c -o $@ $<\\n' >Makefile
make -s -j3 main && ./main
"""
_REDIS: Final = """
redis-server --port 0 --unixsocket sock --save '' --daemonize no --logfile /dev/null --dir . & server=$!
until redis-cli -s sock ping >/dev/null 2>&1; do kill -0 $server; sleep 0.1; done
redis-cli -s sock eval 'for i = 1, 20000 do redis.call("set", i, string.rep("x", 100)) end' 0 >/dev/null
redis-cli -s sock bgsave >/dev/null; redis-cli -s sock shutdown nosave; wait $server
"""
_PYTHON_TESTS: Final = """
for python in {0} /usr/bin/python3; do
  if $python -c 'import test.test_fork1, test.test_mmap' 2>/dev/null; then
    exec $python -m test -q test_mmap test_fork1 test_threading test_memoryio >log 2>&1
  fi
done
echo "its tests are not installed (Debian: apt-get install libpython3.11-testsuite)"; exit 3
"""
_NAMESPACE: Final = """
unshare -ipf --mount-proc sh -c 'ls /proc | wc -l; (seq 20000 | sort -rn | tail -1) & sleep 0.1; wait'
"""
_PIPELINE: Final = "seq 200000 | sort -rn | awk '{ n += $1 % 7 } END { print n }'"
_XZ: Final = "seq 300000 >s; xz -T2 --block-size=500KiB s; xz -dc s.xz | sha1sum"
_CXX: Final = """
echo '#include <map>
int main() { std::map<int, int> m; return m[1]; }' >m.cc; g++ m.cc && ./a.out
"""
_CHROMIUM: Final = """
chromium --headless --no-sandbox --disable-gpu --user-data-dir=$PWD/u --dump-dom 'data:text/html,x' 2>/dev/null
"""
_POOL: Final = """
import multiprocessing
if __name__ == '__main__':
    with multiprocessing.get_context('fork').Pool(3) as pool:
        print(sum(pool.map(abs, range(3000))))
"""
_TORTURE: Final = Path(__file__).resolve().parent.parent / "tests/trace/torture.py"

PROGRAMS: Final = {
    "true": Program("a program that ends at once", "true", shell("true")),
    "pipeline": Program("seq, sort and awk", "awk", shell(_PIPELINE)),
    "subshells": Program("200 subshells", "sh", shell("for i in $(seq 200); do (true); done")),
    "namespace": Program("new PID and IPC namespaces, as in a container", "unshare", shell(_NAMESPACE)),
    "make": Program("make -j3 of a C program", "gcc", shell(_C)),
    "c++": Program("g++ of <map>", "g++", shell(_CXX)),
    "git": Program("commits, and gc --aggressive", "git", shell(_GIT)),
    "sqlite": Program("60,000 rows, an index, a vacuum", "sqlite3", shell(_SQLITE)),
    "nginx": Program("nginx, reloaded three times under load", "nginx", _nginx),
    "redis": Program("Redis with a BGSAVE", "redis-server", shell(_REDIS)),
    "node": Program("node with four worker threads", "node", _node),
    "java": Program("a JVM that says its version", "java", shell("java -version 2>&1")),
    "chromium-version": Program("Chromium's version", "chromium", shell("chromium --version")),
    "chromium": Program("a page in headless Chromium", "chromium", shell(_CHROMIUM)),
    "perl": Program("a hash of 100,000", "perl", shell("perl -e '$h{$_ * 7919 % 1000003} = $_ for 1..100000'")),
    "bash": Program("substitutions", "bash", shell("bash -c 'for i in {1..100}; do x=$(echo $i | tr 0-9 a-j); done'")),
    "xz": Program("xz with two threads", "xz", shell(_XZ)),
    "tar": Program("tar and gzip", "tar", shell("tar czf a.tgz -C /usr/include linux && tar tzf a.tgz | wc -l")),
    "cmake": Program("cmake's help", "cmake", shell("cmake --help-full | sha1sum")),
    "vim": Program("vim that edits a file", "vim", shell("seq 5000 >s; vim -u NONE -es -c '%s/1/one/g' -c 'wq' s")),
    "python": Program("part of Python's tests", "python3", shell(_PYTHON_TESTS.format(sys.executable))),
    "pool": Program("a multiprocessing pool", "python3", python(_POOL)),
    "torture": Program("races for addresses", "python3", lambda _: [sys.executable, "-S", str(_TORTURE)]),
    "strace": Program("a program that traces", "strace", shell("strace -f -o s ls / >/dev/null"), check=False),
    **{
        f"stress-{name}": Program(f"stress-ng --{name}", "stress-ng", stressor(name, 1))
        for name in ("vm", "mremap", "mmapfork", "madvise", "mlock", "shm-sysv", "clone", "vfork", "pthread", "brk")
    },
}

# stress-ng's stressors of memory, VMs and processes; not forkheavy and resources, which fill the disk.
STRESSORS: Final = (
    "bad-altstack bigheap brk clone context daemon dev-shm env exec exit-group fork full kill madvise malloc "
    "mcontend membarrier memfd memrate mincore misaligned mlock mlockmany mmap mmapaddr mmapfixed mmapfork mmaphuge "
    "mmapmany mprotect mremap msync msyncmany munmap nice null numa pagemove pageswap physpage pidfd pipe prefetch "
    "pthread remap rmap schedpolicy secretmem session shm shm-sysv spawn stack stackmmap swap switch tlb-shootdown "
    "tmpfs userfaultfd vfork vforkmany vm vm-addr vm-rw vm-segv vm-splice wait yield zero zombie"
).split()


class Row(msgspec.Struct):
    """What came of a program; `verdict`: "right", "skipped: …", "refused: …" or what is wrong.

    seconds, recorded, replayed: of the program by itself, until its recording is written, and of `rmaplab replay` of
    that with two designs in lockstep, start-up included
    """

    name: str
    what: str
    verdict: str
    seconds: float = 0.0
    recorded: float = 0.0
    replayed: float = 0.0
    processes: int = 0
    events: int = 0
    faults: int = 0
    evidence: str = ""


def try_program(name: str, program: Program, directory: Path) -> Row:
    row = Row(name, program.what, "")
    if shutil.which(program.needs) is None:
        row.verdict = f"skipped: {program.needs} is not installed"
        return row
    command = program.prepare(directory / "bare")
    begun = time.monotonic()
    bare = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    row.seconds = time.monotonic() - begun
    if bare.returncode:
        last = (bare.stdout + bare.stderr).strip().splitlines()[-1:] or [""]
        row.verdict = f"skipped: it ends with {bare.returncode} unrecorded ({last[0][:80]})"
        return row
    command = program.prepare(directory / "recorded")
    silence = os.open(os.devnull, os.O_RDWR)
    kept = [os.dup(number) for number in range(3)]
    begun = time.monotonic()
    try:
        for number in range(3):
            os.dup2(silence, number)
        recording = record(command, directory / "h.parquet", check=program.check)
    except CannotRun as refusal:
        row.verdict = f"refused: {refusal}"
        return row
    finally:
        for number, descriptor in enumerate(kept):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(silence)
    row.recorded = time.monotonic() - begun
    history = recording.history
    summary = history.summary()
    row.processes, row.events, row.faults = summary["processes"], summary["events"], summary["faults"]
    row.evidence = history.evidence
    replay = [sys.executable, "-m", "rmaplab", "replay", str(directory / "h.parquet"), "--rmap", "anon_vma,cow_context"]
    begun = time.monotonic()
    subprocess.run(replay, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    row.replayed = time.monotonic() - begun
    plan = Plan([AnonVmaRmap, CowContextRmap], profile_for(history.header.kernel)[0], alone=False)
    try:
        found = compare(history, plan, lambda what, done, total: None)
    except CannotRun as error:
        row.verdict = f"WRONG: {error}"
        return row
    wrong = [difference.what for difference in found.differences if difference.error]
    if recording.status:
        wrong.insert(0, f"it ended with {history.header.ended}")
    row.verdict = f"WRONG: {len(wrong)}: {wrong[0]}" if wrong else "right"
    return row


def table(rows: list[Row]) -> str:
    text = (
        "| program | what | bare, s | recorded, s | replayed, s | processes | events | pages touched | verdict |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n"
    )
    for row in rows:
        figures = (
            f"{row.seconds:.2f} | {row.recorded:.2f} | {row.replayed:.2f} | {row.processes:,} | {row.events:,} "
            f"| {row.faults:,}"
        )
        text += f"| {row.name} | {row.what} | {figures} | {row.verdict} |\n"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description="Record programs, and see that each recording is right.")
    parser.add_argument("--stressors", action="store_true", help="take stress-ng's, two seconds each")
    parser.add_argument("--markdown", type=Path, metavar="F", help="write the table to F")
    parser.add_argument("names", nargs="*", metavar="NAME", help="some of them (default: all)")
    arguments = parser.parse_args()
    programs = PROGRAMS
    if arguments.stressors:
        programs = {
            name: Program(f"stress-ng --{name} 1", "stress-ng", stressor(name, 2), check=name != "vm-segv")
            for name in STRESSORS  # vm-segv traces its children
        }
    rows: list[Row] = []
    for name in arguments.names or programs:
        with tempfile.TemporaryDirectory(prefix="rmaplab-program-", ignore_cleanup_errors=True) as directory:
            for part in ("bare", "recorded"):
                Path(directory, part).mkdir()
            Path(directory).chmod(0o755)
            rows.append(try_program(name, programs[name], Path(directory)))
        row = rows[-1]
        print(f"{name:18} {row.seconds:6.2f} s {row.recorded:6.2f} s {row.events:8,} events  {row.verdict}", flush=True)
    wrong = [row for row in rows if row.verdict.startswith("WRONG")]
    right = sum(row.verdict == "right" for row in rows)
    print(f"Linux {platform.release()}: {right} of {len(rows)} right, {len(wrong)} wrong, others skipped or refused")
    if arguments.markdown is not None:
        arguments.markdown.write_text(table(rows))
    return 1 if wrong or not right else 0


if __name__ == "__main__":
    sys.exit(main())
