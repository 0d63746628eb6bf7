# ruff: noqa: E402  as the program itself: what libraries import for others is kept out first
"""Seeding in a process of its own, into a registry without a cluster, for the benchmarks.

python -m tests.bench.seeding BUNDLE CA PORT JOURNAL [--limit-rate BYTES] [--no-proof]

The command line seeds clusters only, by what a cluster file says; this is what it does once it knows the way. The last
line is JSON: bytes sent, seconds of the proof, and images that cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

from kubeadm_registry.cli import start

start.lean()
from kubeadm_registry.bundle import Bundle
from kubeadm_registry.errors import Error
from kubeadm_registry.images import seed
from kubeadm_registry.images.detached import run_in_child
from kubeadm_registry.images.journal import Journal
from kubeadm_registry.registry import Limit, Registry


def main() -> None:
    """Seed, prove, and say what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("ca", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("journal", type=Path)
    parser.add_argument("--limit-rate", type=int, default=0)
    parser.add_argument("--no-proof", action="store_true")
    options = parser.parse_args()
    stop = run_in_child()
    connect = partial(Registry, "127.0.0.1", options.port, ca=options.ca.read_text(), timeout=60)
    with Bundle.open(options.bundle) as bundle:
        items = seed.plan(bundle)
        limit = Limit(options.limit_rate)
        try:
            sent = seed.Seeder(bundle, connect, Journal(options.journal), limit=limit, stop=stop).run(items)
        except Error as error:
            sys.exit(f"{error.code}: {error}")
        begin = time.perf_counter()
        flaws = {} if options.no_proof else seed.prove(connect, items)
    print(json.dumps({"sent": sent, "proof": time.perf_counter() - begin, "flaws": flaws}))


if __name__ == "__main__":
    main()
