"""``python -m tests.simulation --seed N`` replays one schedule; ``--count N`` runs many, on all processors."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.simulation import record
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.process import Ended
from tests.simulation.quick import quick
from tests.simulation.run import Result, run
from tests.simulation.schedule import DISTRIBUTION, KINDS, ZOT
from tests.simulation.summary import Summary

CHUNK = 50  # schedules at a time for one process
TELL = 30.0  # seconds


def main(arguments: list[str]) -> int:
    """The exit status is 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one, and show what happens")
    parser.add_argument("--count", type=int, default=2000, help="run so many (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="beginning with this seed (%(default)s)")
    parser.add_argument("--kind", default="", choices=["", *KINDS], help="schedules of this kind only")
    parser.add_argument("--frontend", default="", choices=["", ZOT, DISTRIBUTION], help="with this one only")
    parser.add_argument("--mutant", default="", choices=["", *MUTANTS], help="with this rule broken")
    parser.add_argument("--mutants", action="store_true", help="tell after how many schedules each is found")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="(%(default)s)")
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no more after so long; 0: run all")
    parser.add_argument("--into", type=Path, help="record blocks of seeds in this directory, skip those that are there")
    parser.add_argument(
        "--publish", action="store_true", help=f"put what --into has from seed 0 on into {record.RAN.name}"
    )
    options = parser.parse_args(arguments)
    if options.into and (
        options.mutant or options.frontend or options.first % record.BLOCK or options.count % record.BLOCK
    ):
        parser.error(f"--into takes whole blocks of {record.BLOCK} seeds of all frontends, and no mutants")
    if options.publish:
        if not options.into or options.kind:
            parser.error("--publish takes --into, and all kinds")
        return publish(options.into)
    if options.mutants:
        return all_mutants()
    with MUTANTS[options.mutant].applied() if options.mutant else contextlib.nullcontext():
        if options.seed is not None:
            result = run(options.seed, options.kind, options.frontend, tracing=True)
            print(told(result))
            return 1 if result.finding else 0
        if options.mutant:
            options.processes = 1
        return many(options)


def told(result: Result) -> str:
    """One schedule for people."""
    lines = [*result.trace, ""]
    if result.finding is not None:
        lines.append(f"BROKEN: {result.finding.promise}: {result.finding.text}, at {result.finding.at:.4f} s")
        lines.append(
            f"replay: python -m tests.simulation --seed {result.seed} --kind {result.kind} --frontend {result.frontend}"
        )
    lines.append(
        f"seed {result.seed}, {result.kind}, {result.frontend}: {result.counts}, recovery {result.recovery:.2f} s"
    )
    return "\n".join(lines)


def all_mutants() -> int:
    """A table of what breaks when a rule is broken; the exit status is 1 if one is not found."""
    print("| mutant | the rule that is broken | kind | promise that breaks | found in schedule |")
    print("| --- " * 5 + "|")
    missed = 0
    for name, mutant in MUTANTS.items():
        with mutant.applied():
            seed = first_found(mutant)
        missed += seed is None
        found = f"number {seed + 1}" if seed is not None else f"none of {mutant.seeds}"
        print(f"| `{name}` | {mutant.text} | `{mutant.kind}` | {mutant.finds} | {found} |", flush=True)
    return 1 if missed else 0


def first_found(mutant: Mutant) -> int | None:
    """The first seed under which the promise breaks that *mutant* names, while it is applied."""
    with quick():
        for seed in range(mutant.seeds):
            finding = run(seed, mutant.kind, mutant.frontend).finding
            if finding is not None and finding.promise == mutant.finds:
                return seed
    return None


def chunk(kind: str, frontend: str, seeds: range) -> tuple[int, Summary]:
    """Run *seeds*; the first of them, and what came of all."""
    summary = Summary()
    with quick():
        for seed in seeds:
            try:
                summary.add(run(seed, kind, frontend))
            except Ended as error:  # no Exception: it would end the process of the pool, and this part would be missing
                raise RuntimeError(f"schedule {seed + 1}: a killed process was in the midst of something") from error
    return seeds.start, summary


def leave_interrupts() -> None:
    """An interrupt is for the process that waits for this one, and then ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def parts(kind: str, frontend: str, chunks: list[range], processes: int) -> Iterator[tuple[int, Summary]]:
    """What comes of *chunks*, in any order."""
    if processes == 1:
        yield from map(partial(chunk, kind, frontend), chunks)
        return
    with multiprocessing.Pool(processes, leave_interrupts) as pool:
        yield from pool.imap_unordered(partial(chunk, kind, frontend), chunks)


def many(options: argparse.Namespace) -> int:
    """Run all that is not recorded yet, and tell how it goes."""
    book = record.Record(options.into, options.kind) if options.into else None
    recorded, left_out = book.read() if book else ({}, 0)
    published = counted(book) if book and not (options.kind or options.first) else record.Ran("")
    recorded = {first: block for first, block in recorded.items() if first >= published.seeds}
    size, end = record.BLOCK if book else CHUNK, options.first + options.count
    chunks = [
        range(first, min(first + size, end))
        for first in range(max(options.first, published.seeds), end, size)
        if first not in recorded
    ]
    summary = Summary()
    summary.merge(published.summary)
    for part in recorded.values():
        summary.merge(part)
    before, planned = summary.total(), sum(map(len, chunks))
    tell_broken(summary)
    if book:
        print(f"{before.schedules:,} recorded, {planned:,} to run; files left out: {left_out}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = told_at = time.monotonic()
    try:
        for first, part in parts(options.kind, options.frontend, chunks, options.processes):
            if book:
                book.write(first, part)
            summary.merge(part)
            tell_broken(part)
            now, ran = time.monotonic(), summary.total().schedules - before.schedules
            if now - told_at >= TELL:
                told_at = now
                rate = ran / (now - began)
                print(f"{ran:,} of {planned:,}, {rate:.0f} a second, {len(summary.broken)} broken", flush=True)
            if options.minutes and now - began >= options.minutes * 60:
                break
    except KeyboardInterrupt:
        print("interrupted: what is not recorded is lost")
    total, took = summary.total(), time.monotonic() - began
    print(summary.table())
    print(
        f"\n{total.schedules:,} schedules, {total.events:,} events, {total.seconds / 3600:,.1f} hours of the simulated"
        f" servers; {total.schedules - before.schedules:,} of them in {took / 60:.1f} minutes"
        f" on {options.processes} processes"
    )
    return 1 if summary.broken else 0


def counted(book: record.Record) -> record.Ran:
    """What the project says has run, if it is of the same sources as *book*; else nothing has."""
    with contextlib.suppress(FileNotFoundError):
        ran = record.Ran.read(record.RAN)
        if ran.digest == book.digest:
            return ran
    return record.Ran(book.digest)


def publish(directory: Path) -> int:
    """Put what has run from seed 0 on into the project's file, and print the table of it."""
    book = record.Record(directory, "")
    ran = counted(book)
    blocks = ran.go_on(book.read()[0])
    ran.write(record.RAN, datetime.datetime.now(datetime.UTC).date())
    print(ran.summary.table())
    print(f"\n{ran.seeds:,} schedules from seed 0 on, {blocks * record.BLOCK:,} of them new")
    return 1 if ran.summary.broken else 0


def tell_broken(summary: Summary) -> None:
    """The schedules that broke a promise."""
    for seed, kind, text in summary.broken:
        print(f"BROKEN seed {seed} {kind}: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
