#!/bin/bash
# etcd's simple tokens are not only in the memory of the member that gave them: a request for one is an entry of the raft log, so a
# member that was killed and started again replays it, and the token that a client got before is still good. Who tests that a client
# gets over a lost token by killing etcd tests nothing. Its time to live ends it, and that begins anew with each use: a token that is
# used every second never ends.
#
# Seen on 2026-11-29 with Debian 12's etcd 3.4.23 (etcd-server 3.4.23-4+b4), default --auth-token=simple.
#     before kill: ok
#     after kill -9 and restart: ok
#     after 30 s without use, with a time to live of 20 s: "etcdserver: invalid auth token"
set -euo pipefail
version=3.4.23-4+b4
dir=$(mktemp -d)
etcd=
trap '[ -z "$etcd" ] || kill -KILL "$etcd" 2>/dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download "etcd-server=$version" 2>/dev/null
dpkg-deb -x etcd-server_*.deb .
url=http://127.0.0.1:23791

start() {
    usr/bin/etcd --data-dir data --listen-client-urls "$url" --advertise-client-urls "$url" --listen-peer-urls http://127.0.0.1:23792 \
        --initial-advertise-peer-urls http://127.0.0.1:23792 --initial-cluster default=http://127.0.0.1:23792 --auth-token-ttl 20 2>>log &
    etcd=$!
    disown
    for _ in $(seq 100); do
        curl -sf "$url/health" 2>/dev/null | grep -q '"true"' && return
        sleep 0.1
    done
    echo "etcd did not start"
    exit 1
}
post() { curl -s -X POST "$url/v3/$1" -d "$2" "${@:3}"; }
# Reads a key by the token; prints ok or what etcd says.
read_by() {
    answer=$(post kv/range '{"key":"YQ=="}' -H "Authorization: $1")
    case $answer in *'"header"'*) echo ok ;; *) echo "$answer" ;; esac
}

start
post auth/user/add '{"name":"root","password":"pass"}' >user
post auth/user/grant '{"user":"root","role":"root"}' >grant
post auth/role/add '{"name":"root"}' >role
post auth/user/grant '{"user":"root","role":"root"}' >grant
post auth/enable '{}' >enable
token=$(post auth/authenticate '{"name":"root","password":"pass"}' | sed -n 's/.*"token":"\([^"]*\)".*/\1/p')
[ -n "$token" ] || { echo "no token was given"; exit 1; }
before=$(read_by "$token")
echo "before kill: $before"
kill -KILL "$etcd"
start
after=$(read_by "$token")
echo "after kill -9 and restart: $after"
# Each use gives it its time anew: it is left alone for longer than that.
sleep 30
late=$(read_by "$token")
echo "after 30 s without use: $late"
if [ "$before" = ok ] && [ "$after" = ok ] && [[ $late = *"invalid auth token"* ]]; then
    echo "as described"
else
    echo "CHANGED"
    exit 1
fi
