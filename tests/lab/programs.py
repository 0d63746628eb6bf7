"""Programs that tests and the demo need: built once from their source, or taken from a package, into the cache.

python -m tests.lab.programs garage     prints the program's path
python -m tests.lab.programs kubelet    builds all of Kubernetes' programs but kubeadm, which are one build
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.lab.command import LabError, build, cache, locked, missing, run, say
from tests.lab.settings import Settings
from tests.lab.system import system

#: Source of what the pods of tests run.
PODS = Path(__file__).parents[1] / "kubernetes/programs"


@dataclass(frozen=True, slots=True)
class Program:
    """One program, or several of one build, and how to build it; the directory's ``bin`` then has it."""

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
    parts: tuple[str, ...] = ()
    """The programs of the build, where they are several, or one of another name."""
    crates: int = 0
    """How many crates cargo compiles for it, so that one can see how far it is; 0: not told."""

    @property
    def programs(self) -> tuple[str, ...]:
        """What ``bin`` then has."""
        return self.parts or (self.name,)


def _go(name: str, package: str, version: str, duration: str) -> Program:
    """A Go program."""
    return _go_build(name, version, duration, {name: package})


def _go_build(name: str, version: str, duration: str, packages: Mapping[str, str]) -> Program:
    """Go programs, by a module of our own: ``go install`` asks for a list of versions, which some proxies refuse.

    *packages* are the programs' packages by their names; the modules that these are in have one *version*.
    """

    def steps(root: Path) -> list[list[str]]:
        return [
            ["go", "-C", str(root), "mod", "init", "build"],
            ["go", "-C", str(root), "get", *(f"{package}@{version}" for package in packages.values())],
            *_compile(root, packages),
        ]

    return Program(name, version, duration, steps, needs=("go",), parts=tuple(packages))


def _compile(root: Path, packages: Mapping[str, str], linker: str = "") -> list[list[str]]:
    flags = ["-trimpath", f"-ldflags=-s -w {linker}".rstrip()]
    return [
        ["go", "-C", str(root), "build", *flags, "-o", str(root / "bin" / name), package]
        for name, package in packages.items()
    ]


#: The modules that k8s.io/kubernetes 1.36 takes from its own tree; outside of it they are released beside it.
_STAGING = (
    "api apiextensions-apiserver apimachinery apiserver cli-runtime client-go cloud-provider cluster-bootstrap "
    "code-generator component-base component-helpers controller-manager cri-api cri-client cri-streaming "
    "csi-translation-lib dynamic-resource-allocation endpointslice externaljwt kms kube-aggregator "
    "kube-controller-manager kube-proxy kube-scheduler kubectl kubelet metrics mount-utils pod-security-admission "
    "sample-apiserver streaming"
).split()
KUBERNETES = "v1.36.3"


def _kubernetes(name: str, duration: str, *programs: str) -> Program:
    """Programs of Kubernetes, which take their version from the linker; kubeadm its default version as well."""
    packages = {program: f"k8s.io/kubernetes/cmd/{program}" for program in programs}
    stamps = {"gitVersion": KUBERNETES, "gitMajor": "1", "gitMinor": KUBERNETES.split(".")[1]}
    linker = " ".join(f"-X k8s.io/component-base/version.{key}={value}" for key, value in stamps.items())
    staging = KUBERNETES.replace("v1.", "v0.", 1)

    def steps(root: Path) -> list[list[str]]:
        go = ["go", "-C", str(root)]
        replaced = [f"-replace=k8s.io/{module}=k8s.io/{module}@{staging}" for module in _STAGING]
        return [
            [*go, "mod", "init", "build"],
            [*go, "mod", "edit", f"-require=k8s.io/kubernetes@{KUBERNETES}", *replaced],
            [*go, "get", *(f"{package}@{KUBERNETES}" for package in packages.values())],
            *_compile(root, packages, linker),
        ]

    return Program(name, KUBERNETES, duration, steps, needs=("go",), parts=programs)


def _own(name: str, source: str, argv: Callable[[Path, Path], list[str]], needs: str) -> Program:
    """A program of the file *source* in PODS, whose digest is its version; *argv* builds one into the other path."""
    file = PODS / source
    version = hashlib.sha256(file.read_bytes()).hexdigest()[:12]

    def steps(root: Path) -> list[list[str]]:
        (root / "bin").mkdir()
        return [argv(file, root / "bin" / name)]

    return Program(name, version, "a few seconds", steps, needs=(needs,))


def _python(name: str, duration: str, parts: Sequence[str], **packages: str) -> Program:
    """Programs of Python *packages*, each of a version, in an environment of their own.

    It is built elsewhere and renamed: start them by its ``bin/python -m``.
    """

    def steps(root: Path) -> list[list[str]]:
        pinned = [f"{package.replace('_', '-')}=={version}" for package, version in packages.items()]
        return [[sys.executable, "-m", "venv", str(root)], [f"{root}/bin/python", "-m", "pip", "install", *pinned]]

    return Program(name, "-".join(packages.values()), duration, steps, parts=tuple(parts))


#: ``$1`` a directory, ``$2`` a package, ``$3...`` programs in its /usr/bin. The package is not installed: its services
#: would run. Lists of packages that are not there, or too old, are fetched, which takes root.
_DEBIAN = """
set -eu
root=$1 package=$2
shift 2
cd "$root"
apt-get -q download "$package" || { apt-get -q update && apt-get -q download "$package"; }
dpkg-deb --extract "$package"_*.deb tree
mkdir bin
for program in "$@"; do mv "tree/usr/bin/$program" bin; done
rm -r tree "$package"_*.deb
"""


def _debian(package: str, *parts: str) -> Program:
    """Programs of a Debian *package* that need no other package than libc; of the version that the release has."""

    def steps(root: Path) -> list[list[str]]:
        return [["sh", "-c", _DEBIAN, "sh", str(root), package, *parts]]

    tools = ("apt-get", "dpkg-deb")
    return Program(package, "debian", "a few seconds", steps, needs=tools, packages="apt, dpkg", parts=parts)


#: The same with the packages that this machine lacks: ``bin`` starts it with their libraries and programs.
_WITH_LIBRARIES = """
set -eu
root=$1 package=$2 directory=$3
cd "$root"
plan() { apt-get -q --simulate install --no-install-recommends "$package"; }
steps=$(plan) || { apt-get -q update && steps=$(plan); }
names=$(printf '%s\\n' "$steps" | sed -n 's/^Inst \\([^ ]*\\) .*/\\1/p' | grep -vx -e "$package" -e 'libc6.*' || :)
set -- "$package" $names
apt-get -q download "$@" || { apt-get -q update && apt-get -q download "$@"; }
for file in *.deb; do dpkg-deb --extract "$file" tree; done
rm -- *.deb
libraries=$(find tree -name '*.so.*' -printf '$here/%h\\n' | sort -u | paste -s -d :)
mkdir bin
cat > "bin/$package" <<EOF
#!/bin/sh
here=\\$(dirname -- "\\$(dirname -- "\\$(readlink -f -- "\\$0")")")
export LD_LIBRARY_PATH="$libraries" PATH="\\$PATH:\\$here/tree/usr/bin"
exec "\\$here/tree/usr/$directory/$package" "\\$@"
EOF
chmod 755 "bin/$package"
"""


def _with_libraries(package: str, directory: str) -> Program:
    """The program of a Debian *package* that has its name, in a *directory* of /usr. It is not installed either."""

    def steps(root: Path) -> list[list[str]]:
        return [["sh", "-c", _WITH_LIBRARIES, "sh", str(root), package, directory]]

    return Program(package, "debian", "a few seconds", steps, needs=("apt-get", "dpkg-deb"), packages="apt, dpkg")


_CNI = "github.com/containernetworking/plugins/plugins"

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
            crates=284,
        ),
        _go("crane", "github.com/google/go-containerregistry/cmd/crane", "v0.22.1", "about a minute"),
        _go("crictl", "sigs.k8s.io/cri-tools/cmd/crictl", "v1.36.0", "about a minute"),
        _go("oras", "oras.land/oras/cmd/oras", "v1.3.6", "about a minute"),
        _go("regctl", "github.com/regclient/regclient/cmd/regctl", "v0.11.7", "about a minute"),
        _go("registry", "github.com/distribution/distribution/v3/cmd/registry", "v3.1.1", "about a minute"),
        _go(
            "conformance",
            "github.com/opencontainers/distribution-spec/conformance",
            "v0.0.0-20260831232431-97274622c111",
            "a few seconds",
        ),
        _kubernetes("kubeadm", "about two minutes", "kubeadm"),
        _kubernetes(
            "kubernetes",
            "five minutes or more",
            "kubelet",
            "kubectl",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kube-proxy",
        ),
        _go_build(
            "etcd",
            "v3.6.8",
            "about two minutes",
            {"etcd": "go.etcd.io/etcd/server/v3", "etcdctl": "go.etcd.io/etcd/etcdctl/v3"},
        ),
        _go("coredns", "github.com/coredns/coredns", "v1.14.2", "about two minutes"),
        _go_build(
            "cni",
            "v1.9.0",
            "about a minute",
            {
                "bridge": f"{_CNI}/main/bridge",
                "host-local": f"{_CNI}/ipam/host-local",
                "loopback": f"{_CNI}/main/loopback",
            },
        ),
        # The same from its source takes hundreds of modules.
        _debian("prometheus", "prometheus", "promtool"),
        _with_libraries("haproxy", "sbin"),
        _with_libraries("keepalived", "sbin"),
        _with_libraries("podman", "bin"),
        _python("ansible", "half a minute", ["ansible-playbook"], ansible_core="2.19.14"),
        _python("pyinfra", "half a minute", ["pyinfra"], pyinfra="3.10.0"),
        _own(
            "pause",
            "pause.c",
            lambda source, target: ["gcc", "-static", "-Os", "-s", "-o", str(target), str(source)],
            "gcc",
        ),
        _own(
            "guest",
            "guest.go",
            lambda source, target: ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", str(target), str(source)],
            "go",
        ),
    )
}


def program(name: str) -> Path:
    """Return the path of the program *name*; builds it if the cache has none of the wanted version.

    Raises LabError if the machine lacks what the build needs, or with the end of the build's output if it fails.
    """
    wanted, path = _place(name)
    if path.exists():
        return path
    with locked(cache() / "build" / f"{wanted.name}.lock"):
        if not path.exists():
            _check(wanted)
            _build(wanted, path.parents[1])
    return path


def cached(name: str) -> bool:
    """Whether the program *name* is there already, in the wanted version."""
    return _place(name)[1].exists()


def there(name: str) -> str | None:
    """The program *name* for tests of it alone: what KUBEADM_REGISTRY_NAME names, one that is installed, or that of the
    cache, where the make targets put it; None: there is none."""
    usual = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    kept = _place(name)[1]
    return os.environ.get(f"KUBEADM_REGISTRY_{name.upper()}") or usual or (str(kept) if kept.exists() else None)


def _place(name: str) -> tuple[Program, Path]:
    """What builds the program *name*, and where it is then."""
    wanted = next(each for each in PROGRAMS.values() if name in each.programs)
    return wanted, cache() / "build" / f"{wanted.name}-{wanted.version.removeprefix('v')}" / "bin" / name


def _build(wanted: Program, root: Path) -> None:
    """Build beside *root* and rename, so that a broken build is never taken for a finished one."""
    log = root.parent / f"{wanted.name}.log"
    log.unlink(missing_ok=True)
    say(f"building {wanted.name} {wanted.version}, {wanted.duration}, once; its output is in {log}")
    new = root.with_name(f".new-{root.name}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for argv in wanted.steps(new):
        environment = {"CGO_ENABLED": "0"} if argv[0] == "go" else {}
        build(*argv, log=log, environment=environment, progress=partial(_tell, wanted, log))
    for name in wanted.programs:
        if not (new / "bin" / name).exists():
            raise LabError(f"the build of {wanted.name} has left no {name}; its output is in {log}")
    shutil.rmtree(root, ignore_errors=True)  # it is there without the program, of no use
    new.rename(root)


def _tell(wanted: Program, log: Path, seconds: float) -> None:
    """Say how far a build of cargo is. The last crates are the largest, so the estimate is of no use before the end."""
    compiled = log.read_bytes().count(b"\n   Compiling ")
    if compiled:
        took = f"after {seconds / 60:.0f} min ({wanted.duration} in all)"
        say(f"{wanted.name}: crate {compiled} of {wanted.crates} {took}")


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
    names = [name for each in PROGRAMS.values() for name in each.programs]
    parser.add_argument("names", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--system", action="store_true", help="build the hosts' system as well, which needs root")
    parser.add_argument("--cached", action="store_true", help="build nothing: status 0 if all are there")
    given = parser.parse_args(argv)
    if given.cached:
        return 0 if all(map(cached, given.names)) else 1
    try:
        # A build of cargo has long parts in which one processor is idle.
        with ThreadPoolExecutor(max_workers=2) as pool:
            base = pool.submit(system, Settings().suite) if given.system else None
            paths = list(pool.map(program, given.names))
            if base is not None:
                base.result()
        sys.stdout.writelines(f"{path}\n" for path in paths)
    except LabError as error:
        sys.stderr.write(f"lab: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
