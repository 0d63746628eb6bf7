"""The tables of docs/doctor.md, from the kinds of findings and the lab's broken rooms.

python -m tests.unit.doctor_page    writes them into the page; a test compares the two.
"""

from __future__ import annotations

import re
from pathlib import Path

from kubeadm_registry.doctor.diagnosis import KINDS
from tests.lab.rooms import ROOMS

HEAD = ("| what is broken | what doctor says | words of its fix |", "| --- | --- | --- |")
PAGE = Path(__file__).parents[2] / "docs/doctor.md"


def tables() -> dict[str, str]:
    """Each table by its name in the page."""
    codes = [f"| `{kind.code}` | {kind.severity} | {kind.meaning} |" for kind in KINDS if kind.code != "Preflight"]
    rooms = [
        f"| {room.broken} | `{room.code}`: {'…' if room.says[:1] == '.' else ''}{room.says} | `{room.fix.strip()}` |"
        for room in ROOMS
    ]
    return {
        "codes": "\n".join(["| code | severity | meaning |", "| --- | --- | --- |", *codes]),
        "rooms": "\n".join([*HEAD, *rooms]),
    }


def written(page: str) -> str:
    """*page* with the tables as they should be."""
    for name, table in tables().items():
        page = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda found, text=table: f"{found[1]}{text}\n{found[2]}",  # type: ignore[misc]
            page,
            flags=re.DOTALL,
        )
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
