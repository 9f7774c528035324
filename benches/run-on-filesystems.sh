#!/bin/bash
# Runs the log benchmark on journalled ext4 and on XFS, each in a loop device over a temporary file. Needs root, mkfs.ext4
# and mkfs.xfs. Arguments go to criterion: `./run-on-filesystems.sh /256` runs one number of waiters.
set -euo pipefail
cd "$(dirname "$0")"
[ "$(id -u)" = 0 ] || { echo "root is needed to mount loop devices" >&2; exit 1; }
work=$(mktemp -d "${TMPDIR:-/var/tmp}/brickraft-bench.XXXXXX")
cleanup() {
    for fs in ext4 xfs; do
        if mountpoint -q "$work/$fs"; then umount "$work/$fs"; fi
    done
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

cargo bench --bench log_append --no-run
for fs in ext4 xfs; do
    if ! command -v "mkfs.$fs" >/dev/null; then
        echo "== $fs: mkfs.$fs is not installed, skipped"
        continue
    fi
    truncate -s "${BRICKRAFT_BENCH_IMAGE_GIB:-24}G" "$work/$fs.img"
    case $fs in
        ext4) mkfs.ext4 -q -O has_journal -E lazy_itable_init=0,lazy_journal_init=0 "$work/$fs.img" ;;
        xfs) mkfs.xfs -q "$work/$fs.img" ;;
    esac
    mkdir "$work/$fs"
    mount -o loop "$work/$fs.img" "$work/$fs"
    echo "== $fs on a loop device"
    BRICKRAFT_BENCH_DIR="$work/$fs" cargo bench --bench log_append -- "$@"
    umount "$work/$fs"
    rm "$work/$fs.img"
done
