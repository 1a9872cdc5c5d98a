# SPDX-License-Identifier: GPL-2.0-or-later
# What the programs' scripts share.  They run in the guest, as `sh NAME.sh prepare` once, when the image is made,
# and as `sh NAME.sh work` in each guest.  File descriptor 3 is the wire to the outside.
set -eu

# Says that it is moment $1 (see ../../userland.py): the guest is stopped and read as soon as that is heard.
moment() {
    echo "$1" >&3
}

# All that is started from here is in one control group, which can be made to give memory back: some of what it has
# is in swap from then on.  (A kernel that cannot do this leaves it.)
group=/sys/fs/cgroup/work
mkdir -p $group
echo $$ >$group/cgroup.procs
memory_short() {
    echo "$1 swappiness=200" >$group/memory.reclaim 2>/dev/null || echo "$1" >$group/memory.reclaim || true
}

# What ends before it was to end has failed; nobody waits for it any longer.
trap 'echo -1 >&3' EXIT

# Waits until a command succeeds.
until_true() {
    until "$@" >/dev/null 2>&1; do sleep 0.1; done
}

# The work goes on until the guest is ended from outside.
go_on() {
    while :; do sleep 60; done
}
