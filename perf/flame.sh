#!/usr/bin/env bash
# Profiles the servers of one work: perf/flame.sh WORK [SECONDS]. Needs linux-perf, a build with frame pointers in
# target/frames and inferno in target/tools (see perf/README.md). Writes perf/results/flame-WORK-{leader,follower}.svg
# and, beside them, what each share is as text.
set -eu
cd "$(dirname "$0")/.."
work=$1 seconds=${2:-10}
out=target/flame
mkdir -p "$out"
rm -f "$out"/stop
target/release/brickraft-perf kv --alone --discard --rounds 1 --seconds "$((seconds + 2))" --only "$work" --brickraft target/frames/release/brickraft &
load=$!
# The servers are up, and the load is, once they have used a second of processor time.
server() { pgrep -P "$load" -f 'frames/release/brickraft server' || true; }
until [ "$(server | wc -l)" = 3 ]; do sleep 0.1; done
busy() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }
for pid in $(server); do until [ "$(busy "$pid")" -gt 60 ]; do sleep 0.1; done; done
# Who leads: its address is the one that answers for itself; the busiest is a good guess, and it is only a label.
before=$(for pid in $(server); do echo "$pid $(busy "$pid")"; done)
sleep 1
ranked=$(echo "$before" | while read -r pid was; do echo "$(($(busy "$pid") - was)) $pid"; done | sort -rn | awk '{ print $2 }')
leader=$(echo "$ranked" | sed -n 1p) follower=$(echo "$ranked" | sed -n 3p)
perf record -q -F 999 -g -o "$out/leader.data" -p "$leader" -- sleep "$seconds" &
one=$!
perf record -q -F 999 -g -o "$out/follower.data" -p "$follower" -- sleep "$seconds" &
two=$!
wait $one $two
wait $load || true
for who in leader follower; do
    perf script -i "$out/$who.data" 2>/dev/null | target/tools/bin/inferno-collapse-perf > "$out/$who.folded"
    target/tools/bin/inferno-flamegraph --title "$work, $who" < "$out/$who.folded" > "perf/results/flame-$work-$who.svg"
    perf report -i "$out/$who.data" --no-children --stdio -g none --percent-limit 0.5 2>/dev/null | grep -v '^#' | grep -v '^$' > "$out/$work-$who.txt"
done
