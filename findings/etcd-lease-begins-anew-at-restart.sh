#!/bin/bash
# What is left of an etcd lease is not kept: when a member takes the lead, which a single one does each time that it starts, every
# lease begins anew with the whole of the time that it was granted for. A lock whose holder died stays taken for that much longer at
# each change of the leader, and a cluster that changes its leader more often than the lease is long never lets it go. Who computes "it
# must be free N seconds after its holder's last sign of life" is wrong by the number of elections.
# (--experimental-enable-lease-checkpoint is there against it, and off.)
#
# Seen on 2026-11-29 with Debian 12's etcd 3.4.23 (etcd-server 3.4.23-4+b4), all defaults but addresses. A lease of 30 s:
#     before kill, 21 s after it was granted: 9 s are left
#     after kill -9 and restart: 30 s are left
#     35 s after it was granted 1 of its keys is there
set -euo pipefail
version=3.4.23-4+b4
dir=$(mktemp -d)
etcd=
trap '[ -z "$etcd" ] || kill -KILL "$etcd" 2>/dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download "etcd-server=$version" 2>/dev/null
dpkg-deb -x etcd-server_*.deb .
url=http://127.0.0.1:23793

start() {
    usr/bin/etcd --data-dir data --listen-client-urls "$url" --advertise-client-urls "$url" --listen-peer-urls http://127.0.0.1:23794 \
        --initial-advertise-peer-urls http://127.0.0.1:23794 --initial-cluster default=http://127.0.0.1:23794 2>>log &
    etcd=$!
    disown
    for _ in $(seq 100); do
        curl -sf "$url/health" 2>/dev/null | grep -q '"true"' && return
        sleep 0.1
    done
    echo "etcd did not start"
    exit 1
}
post() { curl -s -X POST "$url/v3/$1" -d "$2"; }
field() { sed -n 's/.*"'"$1"'":"\(-\{0,1\}[0-9]*\)".*/\1/p'; }
left() { post lease/timetolive "{\"ID\":\"$lease\"}" | field TTL; }

start
lease=$(post lease/grant '{"TTL":"30"}' | field ID)
granted=$SECONDS
[ -n "$lease" ] || { echo "no lease was granted"; exit 1; }
post kv/put "{\"key\":\"YQ==\",\"value\":\"YQ==\",\"lease\":\"$lease\"}" >put
sleep 20
before=$(left)
kill -KILL "$etcd"
start
after=$(left)
echo "before kill, $((SECONDS - granted)) s after it was granted: $before s are left"
echo "after kill -9 and restart: $after s are left"
while [ $((SECONDS - granted)) -lt 35 ]; do sleep 1; done
keys=$(post kv/range '{"key":"YQ=="}' | field count)
echo "35 s after it was granted ${keys:-none} of its keys is there"
if [ "$before" -le 10 ] && [ "$after" -ge 28 ] && [ "$keys" = 1 ]; then
    echo "as described"
else
    echo "CHANGED"
    exit 1
fi
