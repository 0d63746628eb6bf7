"""Earlier releases as their users have them: the program at the release's own commit, and the bundle that it makes.

A commit is found by the version that it gave the project, since a clone need not have tags.

python -m tests.lab.releases 0.1.0     prints the paths of its program and of its bundle
"""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.lab import programs
from tests.lab.command import LabError, build, cache, locked, run, say

ROOT = Path(__file__).parents[2]
RELEASES = ("0.1.0",)
"""All releases, the oldest first. `upgrade` is tried from each; add each release when it is made."""


@dataclass(frozen=True, slots=True)
class Release:
    """A release with its *program*, in an environment of its own, and a *bundle* with all that the lab's nodes need."""

    version: str
    program: Path
    bundle: Path

    @property
    def argv(self) -> tuple[str, ...]:
        """The command that starts the program."""
        return _own(self.program)


def _own(program: Path) -> tuple[str, ...]:
    """*program* with the modules of its own environment alone, whatever the tests run with."""
    return ("env", "-u", "PYTHONPATH", str(program))


def commit(version: str) -> str:
    """The commit of the release *version*; empty where the repository's history does not reach so far back."""
    line = f'version = "{version}"'
    if run("git", "-C", ROOT, "rev-parse", "--git-dir", check=False).returncode != 0:
        return ""
    log = run("git", "-C", ROOT, "log", "--format=%H", f"-S{line}", "--", "pyproject.toml").stdout.split()
    for one in log:
        content = run("git", "-C", ROOT, "show", f"{one}:pyproject.toml", check=False).stdout
        if re.search(f"^{re.escape(line)}$", content, re.MULTILINE):
            return one
    return ""


def release(version: str, frontend: str) -> Release:
    """The release *version* with a bundle for *frontend*; both are made once. Raises LabError, also for no history."""
    found = commit(version)
    if not found:
        raise LabError(f"the history of this repository does not contain release {version}")
    place = cache() / "releases" / f"{version}-{found[:12]}"
    with locked(cache() / "releases" / "lock"):
        _install(place, found, version)
        bundle = place / f"{frontend}.tar"
        if not bundle.exists():
            _make_bundle(place, bundle, frontend, version)
    return Release(version, place / "venv/bin/kubeadm-registry", bundle)


def _install(place: Path, found: str, version: str) -> None:
    """Put the source of the commit *found* into *place*, and an environment in which its program runs."""
    ready = place / ".ready"
    if ready.exists():
        return
    shutil.rmtree(place, ignore_errors=True)
    source, venv, log = place / "source", place / "venv", place / "log"
    source.mkdir(parents=True)
    say(f"setting up release {version}, about two minutes, once; it is kept in {place}")
    run("git", "-C", ROOT, "archive", "--format=tar", f"--output={place / 'source.tar'}", found)
    run("tar", "-xf", place / "source.tar", "-C", source)
    build(sys.executable, "-m", "venv", str(venv), log=log)
    build(str(venv / "bin/pip"), "install", "-q", "--upgrade", "pip>=25.1", log=log)
    build(str(venv / "bin/pip"), "install", "-q", "-e", str(source), log=log)
    ready.touch()


def _make_bundle(place: Path, target: Path, frontend: str, version: str) -> None:
    """As ``registry.bundle`` does, by the release's own program."""
    given = {"garage": programs.program("garage")}
    if frontend == "zot":
        binary = programs.zot()
        if binary is None:
            raise LabError("there is no zot: let KUBEADM_REGISTRY_ZOT name one")
        given["zot"] = binary
    say(f"making the bundle of release {version} for {frontend}, about a minute, once; it is kept in {target}")
    names = ",".join((frontend, "garage", "haproxy", "keepalived", "python", "kubeadm-registry"))
    new = target.with_name(f"new-{target.name}")
    options = [f"--program={name}={path}" for name, path in given.items()]
    build(
        *_own(place / "venv/bin/kubeadm-registry"),
        "bundle",
        "create",
        "-o",
        str(new),
        "--with",
        names,
        *options,
        log=place / "log",
    )
    new.rename(target)


if __name__ == "__main__":
    made = release(sys.argv[1], (*sys.argv[2:], "distribution")[0])
    sys.stdout.write(f"{made.program}\n{made.bundle}\n")
