"""What the lab asks of this machine, and what it gives back.

python -m tests.lab.machine prints, as an assignment for ``env``, what has labs' disks in memory, if there is plenty.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from tests.lab.command import locked, missing

#: Program and the Debian package that brings it.
PROGRAMS = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "nft": "nftables",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "mkfs.ext4": "e2fsprogs",
    "nsenter": "util-linux",
    "losetup": "mount",
}

#: Settings of the kernel that have no namespace and that a booting host or a kubelet changes for the whole machine.
SYSCTLS = (
    "fs/file-max",
    "fs/nr_open",
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)

SETTINGS = Path("/proc/sys")

#: Bytes of memory for the disks of two labs, their processes, and the tests.
PLENTY = 14 * 2**30

#: Where labs that are up at the same time note each other; gone with a reboot, as the settings are.
NOTES = Path("/run/kubeadm-registry-lab")


def problems() -> list[str]:
    """Why this machine cannot have a lab, each with the remedy; empty if it can."""
    found = []
    if os.geteuid() != 0:
        found.append("a lab needs root")
    if absent := missing(tuple(PROGRAMS)):
        packages = " ".join(sorted({PROGRAMS[name] for name in absent}))
        found.append(f"not installed: {', '.join(absent)} (apt-get install {packages})")
    if not Path("/dev/loop-control").exists():
        found.append("this machine has no loop devices")
    return found


def save_sysctls(lab: str) -> None:
    """Note that *lab* is up, and the settings that hosts may change as they were before the first lab."""
    with locked(NOTES / "lock"):
        (NOTES / "labs").mkdir(exist_ok=True)
        if not any((NOTES / "labs").iterdir()):
            values = {name: _read(name) for name in SYSCTLS if (SETTINGS / name).exists()}
            (NOTES / "sysctls.json").write_text(json.dumps(values))
        (NOTES / "labs" / lab).touch()


def restore_sysctls(lab: str) -> None:
    """Note that *lab* is no longer up, and after the last one put the settings back."""
    with locked(NOTES / "lock"):
        note = NOTES / "labs" / lab
        if not note.exists():
            return
        note.unlink()
        if any(note.parent.iterdir()):
            return
        for name, value in json.loads((NOTES / "sysctls.json").read_text()).items():
            if _read(name) != value:
                (SETTINGS / name).write_text(value)


def disks() -> dict[str, str]:
    """What has labs' disks in memory if there is plenty, for the tests wait for them much of the time; else nothing."""
    found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    return {"KUBEADM_REGISTRY_LAB_DISKS": "memory"} if found and int(found[1]) * 1024 > PLENTY else {}


def _read(name: str) -> str:
    return (SETTINGS / name).read_text().strip()


if __name__ == "__main__":
    print(*(f"{name}={value}" for name, value in disks().items()))
