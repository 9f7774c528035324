#!/usr/bin/env python3
"""A lock whose holder is paused past its lease, and a file that its late write cannot harm.

    cargo run --release -- dev                                   # in another terminal
    examples/fencing.py ~/.local/state/brickraft/dev/mnt/ledger  # the mount point that dev prints

A takes a lock by etcdctl, puts the lock's revision on its file handle as a fencing token, writes, and is stopped with its
lease running out. B gets the lock, with a higher revision, and writes. A wakes up, believes that it still holds the lock,
and writes: the brick refuses that with ESTALE. Needs Python 3 and etcdctl (Debian: etcd-client).
"""

import argparse
import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys
import time

FENCE_IOCTL = 0x40084201  # _IOW('B', 1, __u64), see SEMANTICS.md, "Fencing"
LEASE_S = 2


def worker(name, path):
    """Runs under `etcdctl lock`, which says in the environment which revision the lock was taken at."""
    token = int(os.environ["ETCD_LOCK_REV"])
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.ioctl(fd, FENCE_IOCTL, struct.pack("Q", token))
    os.pwrite(fd, f"{name} wrote this\n".encode(), 0)
    print(f"{name}: holds the lock at revision {token}, has written", flush=True)
    if name == "A":
        time.sleep(1)  # here it is stopped
        try:
            os.pwrite(fd, b"A wrote late\n", 0)
            print("A: wrote again, which must not happen", flush=True)
            sys.exit(1)
        except OSError as e:
            if e.errno != errno.ESTALE:
                raise
            print("A: its late write was refused: another holder came after it", flush=True)


def start(name, path, endpoint):
    command = ["etcdctl", f"--endpoints={endpoint}", "lock", f"--ttl={LEASE_S}", "--", "fencing-example"]
    command += [sys.executable, os.path.abspath(__file__), "--worker", name, path]
    env = dict(os.environ, ETCDCTL_API="3")
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="a file on a mounted volume; it is made if it is not there")
    parser.add_argument("--endpoint", default="127.0.0.1:2379", help="the coordination store (default: %(default)s)")
    parser.add_argument("--worker", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker, args.file)

    a = start("A", args.file, args.endpoint)
    print(a.stdout.readline(), end="", flush=True)
    os.killpg(a.pid, signal.SIGSTOP)
    print(f"A: is stopped, and its lease of {LEASE_S} s runs out", flush=True)
    try:
        b = start("B", args.file, args.endpoint)
        print(b.communicate(timeout=30)[0], end="", flush=True)
    finally:
        os.killpg(a.pid, signal.SIGCONT)
    print(a.communicate(timeout=30)[0], end="", flush=True)
    with open(args.file, encoding="utf-8") as file:
        content = file.read()
    print(f"the file says: {content}", end="")
    sys.exit(0 if content == "B wrote this\n" else "the file should be B's")


if __name__ == "__main__":
    main()
