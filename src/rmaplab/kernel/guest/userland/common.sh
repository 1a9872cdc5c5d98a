# SPDX-License-Identifier: GPL-2.0-or-later
# What the programs' scripts share.  They run in the guest, as `sh NAME.sh prepare` once, when the image is made,
# and as `sh NAME.sh work` in each guest.  File descriptor 3 is the wire to the outside.
set -eu

# Says that it is moment $1 (see ../../userland.py): the guest is stopped and read as soon as that is heard.
moment() {
    echo "$1" >&3
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
