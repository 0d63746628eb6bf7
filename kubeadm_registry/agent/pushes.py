"""Closes pushes at the proxies of this node until a time, opens them, and counts those in flight.

Run on the node with this source alone, so that it needs nothing that was installed there:

    python3 -I -c SOURCE show|close|open MAP SECONDS USER SOCKET...

``close`` closes them for SECONDS: in the file MAP, from which a proxy that starts reads it, and in each process that
runs, by its runtime socket; ``open`` opens them in both. All print a JSON object: *left*, seconds until pushes open, of
the file and of each process by its socket (0: they are open; null: no process, or no such map); *writes*, requests that
write and that are passed on just now; *old*, whether a process of before a reload, which has no socket, still finishes
requests; and *trouble*, what went wrong.

Source: HAProxy's management guide, "show map", "set map" and "show stat".
"""

from __future__ import annotations

import csv
import json
import os
import pwd
import re
import socket
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Optional

DEADLINE = 5.0  # seconds, for each answer
KEY = "closed"
ENTRY = re.compile(rf"^(?:0x[0-9a-f]+ )?{KEY} (\d+)$", re.MULTILINE)
#: Where requests that write go: those of clients, those that another node passes on, and those of retention.
WRITERS = ("writer", "own_write", "executor")


def ask(path: str, text: str) -> Optional[str]:
    """What the process behind the socket *path* answers; None if there is no process. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(DEADLINE)
        try:
            wire.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        wire.sendall(f"{text}\n".encode())
        answer = b""
        while piece := wire.recv(65536):
            answer += piece
        return answer.decode(errors="replace")


def left(text: str, now: float) -> Optional[float]:
    """The seconds until pushes open by the map *text*; None if it says nothing of them."""
    found = ENTRY.search(text)
    return None if found is None else max(0.0, int(found[1]) - now)


def writes(text: str, backends: Collection[str] = WRITERS) -> int:
    """How many requests are passed on by *backends* or queued there, by what ``show stat`` says."""
    count = 0
    for row in csv.DictReader(text.lstrip("# ").splitlines()):
        if row["pxname"] in backends and row["svname"] == "BACKEND":
            count += int(row["scur"] or 0) + int(row["qcur"] or 0)
    return count


def processes(user: str) -> int:
    """How many processes *user* has."""
    uid, count = pwd.getpwnam(user).pw_uid, 0
    for one in Path("/proc").iterdir():
        try:
            count += one.name.isdigit() and one.stat().st_uid == uid
        except FileNotFoundError:
            continue
    return count


def note(path: Path, until: int) -> None:
    """Write the map, whole and with the mode that it has."""
    mode, new = path.stat().st_mode & 0o777, path.with_name(f".{path.name}.new")
    with new.open("w", encoding="ascii") as file:
        os.fchmod(file.fileno(), mode)
        file.write(f"{KEY} {until}\nfull 0\n")  # the latter is the agent's, which says it again
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def main(arguments: list[str]) -> int:
    """See above. The exit status is 0 also where something went wrong: it is told."""
    verb, name, seconds, user, *sockets = arguments
    trouble: list[str] = []
    running = 0
    shown: dict[str, Any] = {"left": {}, "writes": 0, "old": False, "trouble": trouble}
    until = int(time.time() + float(seconds)) if verb == "close" else 0
    try:
        if verb != "show":
            note(Path(name), until)
        shown["left"][name] = left(Path(name).read_text(encoding="ascii"), time.time())
    except (OSError, ValueError) as error:
        trouble.append(f"{name}: {error}")
    for path in sockets:
        try:
            if verb != "show":
                said = (ask(path, f"set map {name} {KEY} {until}") or "").strip()
                trouble += [f"{path}: {said}"] if said else []
            answer = ask(path, f"show map {name}")
            running += answer is not None
            shown["left"][path] = None if answer is None else left(answer, time.time())
            shown["writes"] += writes(ask(path, "show stat") or "")
        except (OSError, ValueError, KeyError) as error:
            trouble.append(f"{path}: {error}")
    try:
        shown["old"] = processes(user) > 2 * running  # each has a master and a worker
    except (OSError, KeyError) as error:
        trouble.append(f"{user}: {error}")
    print(json.dumps(shown))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
