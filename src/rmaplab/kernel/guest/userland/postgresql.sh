# SPDX-License-Identifier: GPL-2.0-or-later
# PostgreSQL: one process a connection, all forked by the postmaster; pgbench keeps them busy.
. /rmaplab/common.sh

PATH=$(echo /usr/lib/postgresql/*/bin):$PATH  # ahead of the wrappers in /usr/bin
data=/var/lib/postgresql/data
as_postgres() {
    chroot --userspec=postgres --groups= / "$@"
}
start() {
    mkdir -p /run/postgresql
    chown postgres /run/postgresql
    as_postgres postgres -D $data -c listen_addresses= -c shared_buffers=32MB -c max_connections=60 -c fsync=off \
        -c autovacuum_naptime=2s >/tmp/postgresql.log 2>&1 &
    until_true as_postgres pg_isready -q
}

if [ "$1" = prepare ]; then
    mkdir -p $data
    chown postgres $data
    as_postgres initdb -D $data --locale=C.UTF-8 --auth=trust --no-sync >/tmp/initdb.log
    start
    as_postgres pgbench -q -i -s 2 postgres >/tmp/pgbench.log 2>&1
    as_postgres pg_ctl -D $data -m fast stop >/dev/null
    moment 0
else
    start
    as_postgres pgbench -c 24 -j 1 -T 100000 postgres >/tmp/pgbench.log 2>&1 &
    sleep 8
    moment 1
    sleep 2
    moment 2
    sleep 2
    memory_short 12M
    moment 3
fi
go_on
