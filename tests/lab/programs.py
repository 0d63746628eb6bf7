"""Programs that tests and the demo need and that no package brings: built once from their source into the cache.

python -m tests.lab.programs garage     prints the program's path
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.lab.command import LabError, build, cache, locked, missing, run, say


@dataclass(frozen=True, slots=True)
class Program:
    """One program and how to build it; the directory's ``bin`` then has it."""

    name: str
    version: str
    duration: str
    """How long that takes on two processors, for a person who waits."""
    steps: Callable[[Path], list[list[str]]]
    """The commands that build it into a directory, which is there and empty."""
    needs: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    """What pkg-config must know."""
    packages: str = ""
    """The Debian packages with what it needs, besides the language's own toolchain."""


def _go(name: str, package: str, version: str, duration: str) -> Program:
    """A Go program, by a module of our own: ``go install`` asks for a list of versions, which some proxies refuse."""

    def steps(root: Path) -> list[list[str]]:
        go, target = ["go", "-C", str(root)], str(root / "bin" / name)
        return [
            [*go, "mod", "init", "build"],
            [*go, "get", f"{package}@{version}"],
            [*go, "build", "-trimpath", "-ldflags=-s -w", "-o", target, package],
        ]

    return Program(name, version, duration, steps, needs=("go",))


#: The modules that k8s.io/kubernetes 1.36 takes from its own tree; outside of it they are released beside it.
_STAGING = (
    "api apiextensions-apiserver apimachinery apiserver cli-runtime client-go cloud-provider cluster-bootstrap "
    "code-generator component-base component-helpers controller-manager cri-api cri-client cri-streaming "
    "csi-translation-lib dynamic-resource-allocation endpointslice externaljwt kms kube-aggregator "
    "kube-controller-manager kube-proxy kube-scheduler kubectl kubelet metrics mount-utils pod-security-admission "
    "sample-apiserver streaming"
).split()


def _kubeadm(version: str) -> Program:
    """kubeadm of Kubernetes *version* (``v1.36.3``), which takes its default version from the linker."""
    minor = version.split(".")[1]
    staging = version.replace("v1.", "v0.", 1)
    stamps = {"gitVersion": version, "gitMajor": "1", "gitMinor": minor}
    linker = " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in stamps.items())

    def steps(root: Path) -> list[list[str]]:
        go, target, package = ["go", "-C", str(root)], str(root / "bin" / "kubeadm"), "k8s.io/kubernetes/cmd/kubeadm"
        replaced = [f"-replace=k8s.io/{module}=k8s.io/{module}@{staging}" for module in _STAGING]
        return [
            [*go, "mod", "init", "build"],
            [*go, "mod", "edit", f"-require=k8s.io/kubernetes@{version}", *replaced],
            [*go, "get", f"{package}@{version}"],
            [*go, "build", "-trimpath", f"-ldflags=-s -w {linker}", "-o", target, package],
        ]

    return Program("kubeadm", version, "about two minutes", steps, needs=("go",))


PROGRAMS = {
    program.name: program
    for program in (
        Program(
            "garage",
            "2.3.0",
            "7 to 10 minutes",
            lambda root: [["cargo", "install", "garage", "--version", "2.3.0", "--locked", "--root", str(root)]],
            needs=("cargo", "pkg-config", "protoc"),
            libraries=("libsodium",),
            packages="libsodium-dev pkg-config protobuf-compiler",
        ),
        _go("crane", "github.com/google/go-containerregistry/cmd/crane", "v0.22.1", "about a minute"),
        _go("crictl", "sigs.k8s.io/cri-tools/cmd/crictl", "v1.36.0", "about a minute"),
        _kubeadm("v1.36.3"),
    )
}


def program(name: str) -> Path:
    """Return the path of the program *name*; builds it if the cache has none of the wanted version.

    Raises LabError if the machine lacks what the build needs, or with the end of the build's output if it fails.
    """
    wanted = PROGRAMS[name]
    root = cache() / "build" / f"{name}-{wanted.version.removeprefix('v')}"
    path = root / "bin" / name
    if path.exists():
        return path
    with locked(cache() / "build" / f"{name}.lock"):
        if not path.exists():
            _check(wanted)
            _build(wanted, root)
    return path


def _build(wanted: Program, root: Path) -> None:
    """Build beside *root* and rename, so that a broken build is never taken for a finished one."""
    log = root.parent / f"{wanted.name}.log"
    log.unlink(missing_ok=True)
    say(f"building {wanted.name} {wanted.version}, {wanted.duration}, once; its output is in {log}")
    new = root.with_name(f".new-{root.name}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for argv in wanted.steps(new):
        build(*argv, log=log, environment={"CGO_ENABLED": "0"} if argv[0] == "go" else {})
    if not (new / "bin" / wanted.name).exists():
        raise LabError(f"the build of {wanted.name} has left no program; its output is in {log}")
    shutil.rmtree(root, ignore_errors=True)  # it is there without the program, of no use
    new.rename(root)


def zot() -> Path | None:
    """The zot that KUBEADM_REGISTRY_ZOT names, which this project does not build; None if it names none."""
    named = os.environ.get("KUBEADM_REGISTRY_ZOT")
    if not named:
        return None
    if not os.access(named, os.X_OK):
        raise LabError(f"KUBEADM_REGISTRY_ZOT names no program: {named}")
    return Path(named)


def _check(wanted: Program) -> None:
    absent = missing(wanted.needs)
    if "pkg-config" not in absent:
        absent += [name for name in wanted.libraries if run("pkg-config", "--exists", name, check=False).returncode]
    if absent:
        packages = f"; Debian's packages for it: {wanted.packages}" if wanted.packages else ""
        raise LabError(f"{wanted.name} cannot be built without {', '.join(absent)}{packages}")


def main(argv: list[str]) -> int:
    """Print the paths of the programs named; the status to end with."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab.programs", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("names", nargs="+", choices=list(PROGRAMS), metavar="NAME", help=", ".join(PROGRAMS))
    try:
        for name in parser.parse_args(argv).names:
            sys.stdout.write(f"{program(name)}\n")
    except LabError as error:
        sys.stderr.write(f"lab: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
