"""What sources of programs and images need while a bundle is made."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx

from kubeadm_registry import locks, whoami
from kubeadm_registry.bundle.failures import unavailable
from kubeadm_registry.bundle.programs import architecture_of
from kubeadm_registry.errors import BundleError
from kubeadm_registry.printable import Level
from kubeadm_registry.registry import web


class Progress(Protocol):
    """Told what is done now, in a sentence; *level* says whether it is a warning."""

    def __call__(self, text: str, *, level: Level = "info") -> None:
        """Take *text*."""


Meter = Callable[[int, int], None]
"""Told how many bytes of how many are here, or written."""

#: Where the package debian-archive-keyring, of Debian and of Ubuntu, puts the keys.
DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def this_architecture() -> str:
    """Return the architecture of this machine, as ``amd64`` or ``arm64``, or the kernel's word for any other."""
    return architecture_of(platform.machine()) or platform.machine()


def default_cache() -> Path:
    """Return the directory for downloads and built trees: ``kubeadm-registry/bundle`` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification says to ignore a relative path.
    root = Path(base) if base.startswith("/") else whoami.home() / ".cache"
    return root / "kubeadm-registry" / "bundle"


def silent(*_anything: object, **_options: object) -> None:
    """Report nothing."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """Where Debian packages come from.

    Empty *debian* and *security* addresses mean those of this machine's own apt configuration. *keyring* is the file
    with the keys that sign Debian's releases.
    """

    debian: str = ""
    security: str = ""
    keyring: Path = DEBIAN_KEYRING

    @classmethod
    def from_environment(cls) -> Mirror:
        """Return what the environment variables ``KUBEADM_REGISTRY_DEBIAN_{MIRROR,SECURITY_MIRROR,KEYRING}`` say."""
        return cls(
            debian=os.environ.get("KUBEADM_REGISTRY_DEBIAN_MIRROR", ""),
            security=os.environ.get("KUBEADM_REGISTRY_DEBIAN_SECURITY_MIRROR", ""),
            keyring=Path(os.environ.get("KUBEADM_REGISTRY_DEBIAN_KEYRING", DEBIAN_KEYRING)),
        )


@dataclass(frozen=True, slots=True)
class BuildContext:
    """Directories, HTTP client and reporting for one bundle build.

    *scratch* is an empty directory that is removed at the end; *cache* is kept from run to run. *client* makes the
    HTTP client for downloads. *held* are digests of blobs that a delta leaves out, so nobody need fetch them. When the
    work is *thorough*, blobs in the cache are compared with their digests before they are used.
    """

    architecture: str
    scratch: Path
    cache: Path
    progress: Progress = silent
    meter: Meter = silent
    mirror: Mirror = field(default_factory=Mirror)
    client: Callable[[], httpx.Client] = web.client
    held: Collection[str] = ()
    thorough: bool = False

    def new_directory(self, name: str) -> Path:
        """Make and return an empty directory *name* in the scratch directory."""
        path = self.scratch / name
        path.mkdir(parents=True)
        return path


def command(
    argv: Sequence[str | Path],
    *,
    what: str,
    hint: str,
    timeout: float,
    cwd: Path | None = None,
    complaints_too: bool = False,
) -> str:
    """Run *argv* on this machine and return its output, with its error output if *complaints_too*.

    Raises BundleError that says *what* could not be done, with the end of the command's complaint, and *hint*.
    After *timeout* seconds the command and all that it started are killed.
    """
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        process = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if complaints_too else subprocess.PIPE,
            cwd=cwd,
            env=environment,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise unavailable(f"{what}: no program {argv[0]} found on this host", hint=hint) from error
    except OSError as error:
        raise unavailable(f"{what}: cannot run {argv[0]}: {error.strerror}", hint=hint) from error
    with process:
        try:
            output, complaint = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise unavailable(f"{what}: {argv[0]} did not exit within {timeout:g} s", hint=hint) from error
        finally:
            # A helper that was left behind would keep the pipes open and us waiting.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        text = (complaint or output).decode(errors="replace").strip()
        raise unavailable(f"{what}: {argv[0]} failed with exit status {process.returncode}: {text[-2000:]}", hint=hint)
    return output.decode(errors="replace")


@contextlib.contextmanager
def locked(file: Path, progress: Progress, *, deadline: float) -> Iterator[None]:
    """Hold the lock *file* against other runs; *progress* is told of a wait for one.

    Raises BundleError if one holds it for more than *deadline* seconds.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    text = f"{file} has been locked by another run for more than {deadline:g} s"
    busy = unavailable(text, hint="wait until it is done, or stop it")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.locked(file, busy, deadline=0))
        except BundleError:
            progress(f"waiting for another run, which has locked {file}")
            stack.enter_context(locks.locked(file, busy, deadline=deadline))
        yield
