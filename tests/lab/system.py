"""The hosts' operating system: a minimal Debian without Python, and a layer with Python for the hosts that have it."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from pathlib import Path

from tests.lab.command import LabError, build, cache, locked, mounted, run, say

#: What a server has before anything of ours comes. No Python: not every server has one.
PACKAGES = (
    "systemd,systemd-sysv,dbus,openssh-server,sudo,iproute2,iputils-ping,iputils-arping,nftables,containerd,"
    "ca-certificates,ethtool,conntrack,procps,kmod,mount,util-linux"
)
FILES = Path(__file__).parent / "files"

#: Units of a fresh Debian that would work in the background of a test, or need a network with an uplink or a console.
QUIET = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "console-getty.service",
    "getty.target",
)
#: Generators of units, which systemd runs again at each reload: of what needs other hardware, a console or a kernel's
#: command line, or what no server of this kind has. A lab reloads thousands of times.
IDLE = ("debug", "getty", "gpt-auto", "hibernate-resume", "rc-local", "run", "ssh", "system-update", "tpm2")


class System:
    """A built operating system: directories of this machine to lay under a host's own disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def layers(self, *, python: bool) -> str:
        """The value of overlay's ``lowerdir``, the upper layer first."""
        base = self.path / "base"
        return f"{self.path / 'python'}:{base}" if python else str(base)


def system(suite: str) -> System:
    """Return the hosts' system for the Debian release *suite*; builds it into the cache if it is not there.

    Raises LabError with the log's end if it cannot be built.
    """
    place = cache() / "lab" / f"{suite}-{_digest()}"
    if not place.exists():
        with locked(cache() / "lab" / "lock"):
            if not place.exists():
                _build(suite, place)
    return System(place)


def mirror() -> str:
    """The Debian mirror that this machine's own apt uses."""
    listed = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian").stdout
    addresses = [line for line in sorted(set(listed.split())) if "security" not in line]
    if not addresses:
        raise LabError("apt of this machine knows no Debian mirror: add one to its sources and run apt-get update")
    return addresses[0]


def _digest() -> str:
    """What makes one build differ from another."""
    parts = [PACKAGES.encode(), Path(__file__).read_bytes()]
    parts += [path.read_bytes() for path in sorted(FILES.glob("lab-host*"))]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _build(suite: str, place: Path) -> None:
    """Build beside *place* and rename, so that a broken build is never taken for a finished one."""
    if not re.fullmatch(r"[a-z]+", suite):
        raise LabError(f"{suite!r} is not the name of a Debian release")
    for remains in place.parent.glob(".new-*"):
        _remove(remains)
    say(f"building the hosts' system ({suite}), about a minute, once, into {place}")
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))
    log = place.parent / f"{suite}.log"
    log.unlink(missing_ok=True)
    try:
        base, source = new / "base", mirror()
        build("debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, base, source, log=log)
        _finish(base)
        say("adding a layer with Python for the hosts that have it")
        _add_python(new, log)
        for layer in (base, new / "python"):
            _strip(layer)
        new.chmod(0o755)
        new.rename(place)
        _forget_older(suite, place)
    except BaseException:
        _remove(new)
        raise


def _finish(base: Path) -> None:
    """Make of the bare installation a server's system."""
    units = base / "etc/systemd/system"
    for name in QUIET:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    generators = base / "etc/systemd/system-generators"
    generators.mkdir()
    for name in IDLE:
        (generators / f"systemd-{name}-generator").symlink_to("/dev/null")
    for wanted in ("systemd-networkd.service", "systemd-networkd.socket", "systemd-networkd-wait-online.service"):
        for link in units.glob(
            f"*.wants/{wanted}"
        ):  # addresses come from lab-host; without udev networkd waits for ever
            link.unlink()
    shutil.copy(FILES / "lab-host", base / "usr/local/sbin/lab-host")
    shutil.copy(FILES / "lab-host.service", units / "lab-host.service")
    wants = units / "multi-user.target.wants"
    for unit in ("ssh.service", "containerd.service"):
        link = wants / unit
        link.unlink(missing_ok=True)
        link.symlink_to(f"/usr/lib/systemd/system/{unit}")
    (wants / "lab-host.service").symlink_to("../lab-host.service")
    (base / "etc/machine-id").write_text("")


def _add_python(new: Path, log: Path) -> None:
    """Install Python into an upper layer of its own, *new*/python."""
    root, work = new / "root", new / "work"
    for directory in (root, work, new / "python"):
        directory.mkdir()
    run(
        "mount",
        "-t",
        "overlay",
        "overlay",
        "-o",
        f"lowerdir={new / 'base'},upperdir={new / 'python'},workdir={work}",
        root,
    )
    try:
        install = "apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3"
        build("chroot", root, "/bin/sh", "-c", install, log=log, environment={"LC_ALL": "C"})
    finally:
        run("umount", root)
    root.rmdir()
    shutil.rmtree(work)


def _strip(layer: Path) -> None:
    """Remove what belongs to the building machine or to no host in particular."""
    names = ("etc/hostname", "etc/resolv.conf", "etc/apt/sources.list")
    for path in (*(layer / name for name in names), *layer.glob("etc/ssh/ssh_host_*")):
        path.unlink(missing_ok=True)
    for path in (*layer.glob("var/cache/apt/**/*.*"), *layer.glob("var/lib/apt/lists/*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _forget_older(suite: str, place: Path) -> None:
    """Remove what earlier versions of this module built, unless a lab still stands on it."""
    mounts = Path("/proc/mounts").read_text()
    for older in place.parent.glob(f"{suite}-*"):
        if older.is_dir() and older != place and str(older) not in mounts:
            shutil.rmtree(older, ignore_errors=True)


def _remove(path: Path) -> None:
    """Remove an unfinished build; nothing is followed out of it."""
    root = path / "root"
    if mounted(root):
        run("umount", "--lazy", root)
    shutil.rmtree(path, ignore_errors=True)
