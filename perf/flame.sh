#!/usr/bin/env bash
# Profiles our servers under one work: perf/flame.sh WORK [SECONDS]. Needs linux-perf, and inferno in target/tools (see perf/README.md).
# Writes perf/results/flame-WORK-{leader,follower}.svg; target/flame keeps the samples, and each server's system calls.
set -eu
cd "$(dirname "$0")/.."
work=$1 seconds=${2:-5}
program=${BRICKRAFT:-target/release/brickraft}
inferno=${INFERNO:-target/tools/bin}
out=target/flame
mkdir -p "$out"
"${PERF:-target/release/brickraft-perf}" kv --alone --discard --rounds 1 --seconds "$((seconds + 8))" --only "$work" --brickraft "$program" &
load=$!
servers() { pgrep -P "$load" || true; }
used() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }
until [ "$(servers | wc -l)" = 3 ]; do sleep 0.1; done
# The load is on once each has used half a second of processor time.
for pid in $(servers); do until [ "$(used "$pid")" -gt 50 ]; do sleep 0.1; done; done
# The leader has the most to do, by far.
before=$(for pid in $(servers); do echo "$pid $(used "$pid")"; done)
sleep 1
ranked=$(echo "$before" | while read -r pid was; do echo "$(($(used "$pid") - was)) $pid"; done | sort -rn | awk '{ print $2 }')
jobs=()
declare -A pids=([leader]=$(echo "$ranked" | sed -n 1p) [follower]=$(echo "$ranked" | sed -n 3p))
# Call graphs by DWARF: no frame pointers are needed, so it is the program that is measured elsewhere too.
for who in leader follower; do
    perf record -q -F 499 --call-graph dwarf,32768 -o "$out/$work-$who.data" -p "${pids[$who]}" -- sleep "$seconds" &
    jobs+=($!)
done
wait "${jobs[@]}"
for who in leader follower; do
    perf trace -s -p "${pids[$who]}" -o "$out/$work-$who.calls" -- sleep 1 > /dev/null 2>&1 || true
done
wait "$load" || true
for who in leader follower; do
    perf script -i "$out/$work-$who.data" --no-inline 2>/dev/null | "$inferno/inferno-collapse-perf" > "$out/$work-$who.folded"
    "$inferno/inferno-flamegraph" --title "$work, $who" --subtitle "$(date -u +%F), processor time" < "$out/$work-$who.folded" > "perf/results/flame-$work-$who.svg"
done
