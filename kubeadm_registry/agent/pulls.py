"""Records when images were last pulled, from the proxies' lines in the journal: by repository and reference, the day.
And which tags were asked for that are not there, by client: what is in the trash comes back for it.

A process of its own, ``python3 agent.pyz --pulls DIRECTORY UNIT...``, which wakes up once a minute and reads what is
new; nothing of it is in the way of a request. The file *pulls.json* has the record and since when it is complete,
*position.json* how far the journal is read. Deletion may hang on the record, so it begins anew whenever it may lack
something:

* the last line that was read is not in the journal any more, so later ones may be gone with it,
* the node went down without this process having read the last lines before (it is stopped after the proxies),
* journald says that it dropped lines of a proxy, or a day had to be forgotten because there are too many entries,
* a proxy runs and nothing of what it logs arrives, not even the agent's own probes of the public port, one a second:
  journald says nothing of lines that it does not store (journald.conf(5), "MaxLevelStore="),
* the clock was set: when the record began, and on which day there was a pull, may be wrong.

Source of the fields: journalctl(1), "--cursor", and systemd.journal-fields(7).
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, Optional

from kubeadm_registry.agent.formats import Damaged, Format, Found, Newer, split
from kubeadm_registry.agent.processes import Processes

RECORD = Format("the record of pulls")
POSITION = Format("how far the journal is read for pulls")
RECORD_FILE, POSITION_FILE = "pulls.json", "position.json"
EVERY = 60.0  # seconds from one look at the journal to the next
STALE = 600  # seconds after which a record that was not brought up to date says nothing of now
#: Seconds without any request in the log of proxies that run. A proxy may have been stopped for up to two looks unseen.
SILENT = 150.0
SET = 600.0  # seconds by which the clock must be set to count: what depends on the record goes by days
MOST = 100_000  # entries: some 10 MB
#: Clients whose misses are known, and misses of each, the newest: one that asks for anything forgets its own only.
CLIENTS, OF_CLIENT = 500, 50
#: Bits of an address that tell one client from another, by its version, and those that tell one site from another. A
#: host takes any address of its network of IPv6 (RFC 8981), and a site has 65,536 of these (RFC 6177).
OF_HOST, OF_SITE = {4: 32, 6: 64}, {4: 24, 6: 48}
SELDOM = 600  # seconds after which the same miss is noted again
DAY = 86400
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: journald's message that it dropped lines of a unit which wrote too many (systemd, sd-messages.h).
DROPPED = "a596d6fe7bfa4994828e72309e95d61e"
REQUEST = '{"client":"'  # how a proxy's line of a request begins; what else it says is of a higher level
#: Nodes and people pull as nobody or as ``pull``; who pushes may pull as well, but then it may be this project's own
#: tool, which says so. Its repositories hold records and the canary image.
PULL = re.compile(
    r'\{"client":"[0-9a-fA-F.:]{2,45}","who":"(?:anonymous|pull|(push))","method":"(?:GET|HEAD)",'
    r'"path":"/v2/(?!kubeadm-registry/)([a-z0-9][a-z0-9._/-]{0,255})/manifests/([A-Za-z0-9_][A-Za-z0-9_.:+-]{0,200})",'
    r'"status":(?:200|304),(.*)'
)
OWN = '"own":"1"'
#: A tag that is not there. Who may push looks whether a tag is free, and who looks for signatures asks for the tag that
#: is made of a digest; a digest can be pulled as long as its image is there.
MISS = re.compile(
    r'\{"client":"([0-9a-fA-F.:]{2,45})","who":"(?:anonymous|pull)","method":"(?:GET|HEAD)",'
    r'"path":"/v2/(?!kubeadm-registry/)([a-z0-9][a-z0-9._/-]{0,255})/manifests/(?!sha256-)'
    r'([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})","status":404,'
)
Entries = dict[str, dict[str, int]]
"""Days since 1970, by repository and reference."""
Misses = dict[str, dict[str, int]]
"""Seconds since 1970, by client and ``repository:tag``; what was asked for last is last. The address of a client is the
one that it had last."""


def pull_in(message: str) -> Optional[tuple[str, str]]:
    """Repository and reference of the manifest that a client got by this line of a proxy; None for any other line."""
    if "/manifests" not in message:
        return None
    found = PULL.match(message.replace("\\/", "/"))
    if found is None:
        return None
    pusher, repository, reference, rest = found.groups()
    return None if pusher and OWN in rest else (repository, reference)


def miss_in(message: str) -> Optional[tuple[str, str]]:
    """The client that by this line of a proxy asked for a tag that is not there, and ``repository:tag``; else None."""
    found = MISS.match(message.replace("\\/", "/")) if '"status":404,' in message else None
    return (found[1], f"{found[2]}:{found[3]}") if found is not None else None


@dataclass
class Record:
    """The pulls that are known, and *since* when all of them are: seconds since 1970; and the latest misses. Pure.

    *sites* are the clients of the misses by the network of their site, and there the address by their own network.
    """

    since: int
    entries: Entries = field(default_factory=dict)
    missed: Misses = field(default_factory=dict)
    changed: bool = True
    sites: dict[int, dict[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for client, names in list(self.missed.items()):
            before = self._moved(client)
            if before != client:  # as an earlier release kept them
                self.missed[client] = {**self.missed.pop(before), **names}

    def add(self, repository: str, reference: str, moment: int) -> None:
        """There was a pull at *moment*."""
        day, known = moment // DAY, self.entries.setdefault(repository, {})
        if known.get(reference, -1) < day:
            known[reference] = day
            self.changed = True

    def miss(self, client: str, name: str, moment: int) -> None:
        """*client* asked at *moment* for *name*, ``repository:tag``, in vain."""
        names = self.missed.pop(self._moved(client), {})
        self.missed[client] = names  # the last one, so that it is forgotten last
        if len(self.missed) > CLIENTS:
            # Of the site that has most: whoever has many addresses makes its own be forgotten.
            site = max(self.sites, key=lambda one: len(self.sites[one]))
            hosts = self.sites[site]
            del self.missed[hosts.pop(next(iter(hosts)))]
            if not hosts:
                del self.sites[site]
        if moment - names.get(name, -SELDOM) < SELDOM:
            return
        names.pop(name, None)
        names[name] = moment
        while len(names) > OF_CLIENT:
            del names[next(iter(names))]
        self.changed = True

    def _moved(self, client: str) -> str:
        """The address under which *client* was known before; from now on it has this one, and is the last of its site,
        and this one of all."""
        site, host = _networks(client)
        hosts = self.sites.pop(site, {})
        self.sites[site] = hosts
        before = hosts.pop(host, client)
        hosts[host] = client
        return before

    def restart(self, now: int) -> None:
        """Something may be lacking: what is known stays, and all is known from *now* on only."""
        self.since = now
        self.changed = True

    def limit(self, most: int = MOST) -> None:
        """Forget whole days, the oldest first, until there are *most* entries at most."""
        days = sorted(day for one in self.entries.values() for day in one.values())
        if len(days) <= most:
            return
        last = days[len(days) - most - 1]
        kept = {
            repository: {reference: day for reference, day in one.items() if day > last}
            for repository, one in self.entries.items()
        }
        self.entries = {repository: one for repository, one in kept.items() if one}
        self.since = max(self.since, (last + 1) * DAY)
        self.changed = True


@lru_cache(maxsize=2 * CLIENTS)
def _networks(client: str) -> tuple[int, int]:
    """The network of the site of the address *client*, and its own, with its version; 0 for what is no address."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return 0, 0
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    number, length, version = int(address), address.max_prefixlen, address.version
    site, host = (number >> (length - bits[version]) for bits in (OF_SITE, OF_HOST))
    return 8 * site + version, 8 * host + version


@dataclass
class Position:
    """How far the journal is read: to the line *cursor*, at *read* (seconds since 1970), in the boot *boot*.

    *closed*: nothing was logged after that, for the proxies had stopped. *booted*: when that boot began, by the clock
    before it was set; 0: not known.
    """

    cursor: str = ""
    read: int = 0
    boot: str = ""
    closed: bool = False
    booted: int = 0


class Hearing:
    """When a proxy logged a request last: *last*, by the monotonic clock of *boot*.

    Without *last* the first line tells it, for that is where an earlier process stopped.
    """

    def __init__(self, boot: str, last: Optional[float]) -> None:
        self._boot = boot.replace("-", "")
        self._last = last
        self._lost = False

    def line(self, entry: Mapping[str, Any]) -> None:
        """An *entry* of the journal was read. One of another boot says nothing."""
        if entry.get("_BOOT_ID") != self._boot:
            return
        moment = int(entry["__MONOTONIC_TIMESTAMP"]) / 1_000_000
        if self._last is None:
            self._last = moment
        elif str(entry.get("MESSAGE")).startswith(REQUEST):
            self._lost = self._lost or moment - self._last >= SILENT
            self._last = max(self._last, moment)

    def ends(self, now: float, running: Callable[[], bool]) -> bool:
        """All lines until *now* were read: whether some may be lost. Proxies that are not *running* log nothing."""
        if self._last is None or (now - self._last >= EVERY / 2 and not running()):
            self._last = now
        lost = self._lost or now - self._last >= SILENT
        self._lost = False
        return lost


def take(
    record: Record, position: Position, lines: Iterable[str], units: Sequence[str], now: int,
    hearing: Optional[Hearing] = None,
) -> None:  # fmt: skip
    """Learn from *lines*, the journal's entries as JSON from the position's cursor on, that one included."""
    expected = position.cursor
    for line in lines:
        entry = json.loads(line)
        cursor = entry["__CURSOR"]
        if expected and cursor != expected:
            record.restart(now)
        here, expected = cursor == expected, ""
        position.cursor = cursor
        if hearing is not None:
            hearing.line(entry)
        if here:
            continue
        message = entry.get("MESSAGE")
        if not isinstance(message, str):
            continue
        if entry.get("MESSAGE_ID") == DROPPED:
            if any(unit in message for unit in units):
                record.restart(now)
        elif (found := pull_in(message)) is not None:
            record.add(*found, int(entry["__REALTIME_TIMESTAMP"]) // 1_000_000)
        elif (missed := miss_in(message)) is not None:
            record.miss(*missed, int(entry["__REALTIME_TIMESTAMP"]) // 1_000_000)
    if expected or not position.cursor:  # where nothing was ever read, as without a journal on disk, nothing is known
        record.restart(now)
        position.cursor = ""
    record.limit()
    position.read = now


class Recorder:
    """Keeps the record in *folder* up to date with what *units* log. *journal* returns entries from a cursor on.

    *running* says whether any of the units runs.
    """

    def __init__(
        self, folder: Path, units: Sequence[str], journal: Callable[[str, int], Iterable[str]], boot: str,
        running: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._folder = folder
        self._units = units
        self._journal = journal
        self._running = running
        self._silent = False
        self.record, self.position = Record(0), Position()
        #: What the files had, for what a newer release has added; None: they are begun anew.
        self._found: Optional[Found] = None
        self._found_position: Optional[Found] = None
        self._begin(boot)

    def _begin(self, boot: str) -> None:
        """Go on with what an earlier process left, if that can be relied on. Raises OSError, Newer."""
        now = int(time.time())
        try:
            self._found = _writable(RECORD, self._folder / RECORD_FILE)
            said = self._found.values
            entries = {
                str(repository): {str(reference): int(day) for reference, day in one.items()}
                for repository, one in said["pulls"].items()
            }
            missed = {
                str(client): {str(name): int(moment) for name, moment in one.items()}
                for client, one in said.get("missed", {}).items()
            }
            self.record = Record(int(said["since"]), entries, missed, changed=False)
            self._found_position = _writable(POSITION, self._folder / POSITION_FILE)
            where = self._found_position.values
            self.position = Position(
                str(where["cursor"]), int(where["read"]), str(where["boot"]), where.get("closed") is True,
                int(where.get("booted", 0)),
            )  # fmt: skip
        except Newer:
            raise
        except (Damaged, KeyError, ValueError, TypeError, AttributeError) as error:
            tell(f"recording pulls from now on: {error}")
            self.record.restart(now)
            self.position = Position()
        if self.position.boot not in ("", boot) and not self.position.closed:
            tell("this node went down before its last lines were read: recording pulls from now on")
            self.record.restart(now)
        if self.position.read > now:
            tell("the clock went back: recording pulls from now on")
            self.record.restart(now)
        goes_on = self.position.boot == boot and not self.position.closed
        self._hearing = Hearing(boot, None if goes_on else time.monotonic())
        if self.position.boot != boot:
            self.position.booted = 0
        self.position.boot, self.position.closed = boot, False
        self._watch_clock()
        self._write()

    def _watch_clock(self) -> None:
        """Begin the record anew if the clock was set, as it is after a boot with a clock that has lost its battery.

        The time since the boot goes on as the clock does, also while the node is suspended.
        """
        now = time.time()
        booted = round(now - time.clock_gettime(time.CLOCK_BOOTTIME))
        if self.position.booted and abs(booted - self.position.booted) >= SET:
            tell("the clock was set: recording pulls from now on")
            self.record.restart(int(now))
            self.position.booted = 0
        self.position.booted = self.position.booted or booted

    def look(self, *, closed: bool = False) -> None:
        """Read what is new, and keep it. *closed*: nothing comes any more. Raises OSError, ValueError."""
        before = self.record.since
        self._watch_clock()
        take(self.record, self.position, self._journal(self.position.cursor, self.record.since), self._units,
             int(time.time()), self._hearing)  # fmt: skip
        silent = self._hearing.ends(time.monotonic(), self._running)
        if silent:
            self.record.restart(int(time.time()))
            if not self._silent:
                tell(
                    "the journal has no request of the proxies, which log one a second while they and the agent run: "
                    "recording pulls from now on; see MaxLevelStore= in journald.conf(5)"
                )
        elif self.record.since != before:
            tell("the record may lack something: all pulls are known from now on only")
        self._silent = silent
        self.position.closed = closed
        self._write()

    def _write(self) -> None:
        """The record first: to read lines twice does no harm, to skip some would."""
        if self.record.changed:
            values = {"since": self.record.since, "pulls": self.record.entries, "missed": self.record.missed}
            _keep(self._folder / RECORD_FILE, _sealed(RECORD, values, self._found))
            self.record.changed = False
        _keep(self._folder / POSITION_FILE, _sealed(POSITION, vars(self.position), self._found_position))


def _writable(form: Format, path: Path) -> Found:
    """The record in the file *path*, which this release will write. Raises OSError, Damaged, Newer."""
    try:
        found = form.parse(path.read_bytes())
    except FileNotFoundError as error:
        raise Damaged(f"there is no {path.name}") from error
    form.seal({}, found)
    return found


def _sealed(form: Format, values: Mapping[str, Any], found: Optional[Found]) -> dict[str, Any]:
    """The document with *values*, and with what a newer release has added to the one that was *found*."""
    return form.seal({**values, **(split(found.values, values)[1] if found is not None else {})}, found)


def _keep(path: Path, document: Mapping[str, Any]) -> None:
    new = path.with_name(f"{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o640)  # retention's timer reads it, whose user the directory lets in
        json.dump(document, file, separators=(",", ":"))
        file.flush()
        os.fdatasync(file.fileno())
    new.replace(path)


def journal(units: Sequence[str], cursor: str, since: int) -> Iterator[str]:
    """The entries of *units* and journald's own about what it dropped, from *cursor* on, or from *since* on.

    Raises OSError if they cannot be read to the end.
    """
    argv = ["journalctl", "--quiet", "--no-pager", "--output=json", "--output-fields=MESSAGE,MESSAGE_ID"]
    argv.append(f"--cursor={cursor}" if cursor else f"--since=@{since}")
    argv += [*(f"_SYSTEMD_UNIT={unit}" for unit in units), "+", f"MESSAGE_ID={DROPPED}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        yield from process.stdout or ()
    if process.returncode:
        raise OSError(f"journalctl failed with exit status {process.returncode}")


def tell(text: str) -> None:
    """Say *text* in the journal."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _run(units: Sequence[str]) -> bool:
    """Whether there is any process of *units*."""
    return any(Processes(unit).find() for unit in units)


def main(arguments: Sequence[str]) -> int:
    """``DIRECTORY UNIT...``: record until SIGTERM, then read what the proxies said last; the exit status."""
    folder, *units = arguments
    ends = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ends.set())
    try:
        boot = BOOT_ID.read_text(encoding="ascii").strip()
        recorder = Recorder(
            Path(folder), units, lambda cursor, since: journal(units, cursor, since), boot, lambda: _run(units)
        )
        while not ends.is_set():
            recorder.look()
            ends.wait(EVERY)
        recorder.look(closed=not _run(units))
    except (OSError, ValueError, LookupError) as error:
        tell(f"cannot record pulls: {error}")
        return 1
    return 0
