# SPDX-License-Identifier: GPL-2.0-or-later
# Redis: the child that BGSAVE forks writes all out while the parent goes on changing it.
. /rmaplab/common.sh

socket=/run/redis.sock
redis-server --daemonize yes --port 0 --unixsocket $socket --dir /tmp --save '' --logfile /tmp/redis.log
until_true redis-cli -s $socket ping
redis-benchmark -s $socket -q -t set -n 40000 -r 30000 -d 600 -P 32 >/dev/null
redis-benchmark -s $socket -q -t set,get,lpush,lpop -n 10000000 -r 30000 -d 600 -c 20 >/dev/null &
sleep 0.5
moment 1
redis-cli -s $socket bgsave >/dev/null
sleep 0.3
moment 2
memory_short 12M
moment 3
go_on
