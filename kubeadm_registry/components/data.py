"""The data directory on a host: whether it can serve, and what in it is this cluster's and not somebody else's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from kubeadm_registry import paths, secrets
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components.services import FRONTENDS, backend, existing
from kubeadm_registry.config.values import unsuitable
from kubeadm_registry.errors import Error
from kubeadm_registry.transport.host import Host

#: Where ``$1`` really is, then mode and type of all on the way to it that is there already, the innermost first.
_WAY = """
path=$(realpath -m -- "$1") && echo "$path" || exit 1
[ ! -L "$path" ] || { echo "its links lead in a circle" >&2; exit 1; }
until [ -e "$path" ]; do path=${path%/*}; path=${path:-/}; done
set --
while set -- "$@" "$path"; [ "$path" != / ]; do path=${path%/*}; path=${path:-/}; done
exec stat -c '%a|%F|%n' -- "$@"
"""

#: The kind of file system on which ``$1`` is, or will be, as stat names it.
_KIND = 'p=$1; until [ -e "$p" ]; do p=$(dirname -- "$p"); done; stat -f -c %T -- "$p"'
#: Those on which the storage's database, which writes through memory mappings and locks (LMDB), may lose data, or that
#: nodes may share. "fuseblk" is all of FUSE.
_REMOTE = frozenset(
    {
        "acfs", "afs", "ceph", "cifs", "coda", "fhgfs", "fuseblk", "gfs/gfs2", "gpfs", "ibrix", "k-afs", "lustre",
        "nfs", "ocfs2", "panfs", "prl_fs", "smb", "smb2", "snfs", "v9fs", "vboxsf", "vmhgfs",
    }
)  # fmt: skip
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
#: Where /etc/fstab mounts something on the way to ``$1``, and nothing is mounted.
_UNMOUNTED = """
path=$(realpath -m -- "$1") || exit 0
findmnt --fstab --noheadings --list --output TARGET 2>/dev/null | while read -r target; do
  [ "$target" != / ] || continue
  case "$path/" in "${target%/}/"*) mountpoint -q -- "$target" || echo "$target" ;; esac
done
"""


def storage(cluster: Cluster) -> str:
    """Where the storage keeps layers and metadata."""
    return f"{cluster.spec.data_directory}/{backend(cluster.spec).SERVICE.name}"


def scratch(cluster: Cluster) -> dict[str, str]:
    """Where frontends of any kind keep what they work with, each with its user; the images are in the storage."""
    found = [part.SERVICE for part in FRONTENDS.values()]
    return {f"{cluster.spec.data_directory}/{one.name}": one.user for one in found if one.scratch}


def suitable(cluster: Cluster, host: Host) -> Iterator[str]:
    """The services can enter the data directory, other users cannot replace it, and it contains no foreign files."""
    wanted = cluster.spec.data_directory
    real, *steps = _way(host, wanted)
    if real != wanted and (flaw := unsuitable(real)) is not None:
        yield f"{wanted} resolves to {real}; the data {flaw}"
    yield from _not_passable(steps, "the data", ", or set spec.dataDirectory to another path")
    if owner := _owner(cluster, host):
        yield (
            f"{storage(cluster)} is that of the node {owner}, and a node cannot get another name; list it as {owner}, "
            f"or, if {owner} has left the registry, move that directory away"
        )
        return
    for text in (*foreign_storage(cluster, host), *foreign_scratch(cluster, host)):
        yield f"{text}; move them away, or set spec.dataDirectory to another path"


#: What the units do not see, whatever its mode (ProtectHome= and PrivateTmp= in systemd.exec(5)).
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108


def programs_reachable(_: Cluster, host: Host) -> Iterator[str]:
    """The services can enter the directories above the programs, and other users cannot replace these."""
    above = paths.OPT.rpartition("/")[0]
    real, *steps = _way(host, above)
    if any(PurePosixPath(real).is_relative_to(tree) for tree in _HIDDEN):
        yield (
            f"{above} resolves to {real}, which is hidden from the services (ProtectHome= and PrivateTmp= in "
            f"systemd.exec(5)); mount a file system, or bind {real}, at {above} in place of the link"
        )
    yield from _not_passable(steps, "the programs")


def _not_passable(steps: Iterable[str], what: str, otherwise: str = "") -> Iterator[str]:
    """Those of *steps* on a way that services cannot pass, or on which other users could replace *what*."""
    for mode, kind, path in (step.split("|", 2) for step in steps):
        if kind != "directory":
            yield f"{path} is a {kind}, not a directory; move it away{otherwise}"
        elif not int(mode, 8) & 0o001:
            yield f"{path} has mode {mode}, so the services cannot enter it; run chmod o+x {path}"
        elif int(mode, 8) & 0o1002 == 0o002:
            yield f"{path} has mode {mode}, so every user could replace {what}; run chmod o-w {path}"


def mounted(cluster: Cluster, host: Host) -> Iterator[str]:
    """The file systems in /etc/fstab at or above the data directory are mounted."""
    # What is written below a mount point is out of sight once the disk is there: storage, secrets and what the agent
    # has promised to the others.
    wanted = cluster.spec.data_directory
    for target in host.query("sh", "-c", _UNMOUNTED, "unmounted", wanted).text.splitlines():
        yield (
            f"{target} is in /etc/fstab and is not mounted, so {wanted} is on another file system; run "
            f"`mount {target}`, or remove the entry if its disk is lost"
        )


def on_a_disk(cluster: Cluster, host: Host) -> Iterator[str]:
    """The data directory is on a local disk: not on a network file system, not in memory."""
    wanted = cluster.spec.data_directory
    kind = host.query("sh", "-c", _KIND, "kind", wanted).text
    if kind in _REMOTE:
        yield (
            f"{wanted} is on a network, shared or FUSE file system ({kind}), on which the storage's database (LMDB) "
            "may lose data; mount a local disk there, or set spec.dataDirectory to another path"
        )
    elif kind in _IN_MEMORY:
        yield (
            f"{wanted} is in memory ({kind}), and empty after a reboot; mount a disk there, or set "
            "spec.dataDirectory to another path"
        )


def astray(cluster: Cluster, host: Host) -> Iterator[str]:
    """The images are in spec.dataDirectory, and outside of the directories that reset removes."""
    wanted = where = cluster.spec.data_directory
    made = existing(host)
    if made is not None and made.data_directory != wanted and not _empty(host, f"{made.data_directory}/{made.backend}"):
        where = made.data_directory
        yield f"the images are in {where}, not in {wanted}; set spec.dataDirectory to that path"
    real, *_ = _way(host, where)
    unit = backend(cluster.spec).SERVICE.unit
    if any(PurePosixPath(real).is_relative_to(tree) for tree in paths.REMOVED):
        yield f"the images are in {real}, which reset removes; stop {unit} and move them to another directory first"


def foreign_storage(cluster: Cluster, host: Host) -> Iterator[str]:
    """That in the place of the storage is what is not this cluster's."""
    if not owns_storage(cluster, host):
        yield f"{storage(cluster)} contains files that this registry did not create"


def foreign_scratch(cluster: Cluster, host: Host) -> Iterator[str]:
    """That in the place of a frontend's folder is what is not our frontend's."""
    owned = owned_scratch(cluster, host)
    for path in scratch(cluster):
        if path not in owned:
            yield f"{path} contains files that this registry did not create"


def owns_storage(cluster: Cluster, host: Host) -> bool:
    """Whether the storage of *host* is this cluster's, or nothing is there: what else is there must stay as it is."""
    if backend(cluster.spec).is_ours(cluster, host):
        return True
    # Half removed it may have lost its key; the secrets that are kept beside it go last.
    kept = host.query("test", "-e", secrets.kept_path(cluster.spec.data_directory)).ok
    return kept or _empty(host, storage(cluster))


def _owner(cluster: Cluster, host: Host) -> str:
    """The node of this cluster whose storage *host* has under another name; empty if there is none."""
    if not cluster.vault.made or owns_storage(cluster, host):
        return ""
    names = (Host(name, host.address, host.transport) for name in cluster.vault.preview().node_keys)
    return next((one.name for one in names if backend(cluster.spec).is_ours(cluster, one)), "")


def owned_scratch(cluster: Cluster, host: Host) -> list[str]:
    """Those of the folders of ``scratch`` that were made for our frontends, or in which nothing is."""
    return [path for path, user in scratch(cluster).items() if _made_for(host, path, user) or _empty(host, path)]


def _made_for(host: Host, path: str, user: str) -> bool:
    return host.query("stat", "-c", "%F|%a|%U:%G", "--", path).text.endswith(f"|{user}:{user}")


def _empty(host: Host, directory: str) -> bool:
    """Whether there is no file in *directory*, at any depth; also if there is no such directory."""
    return not host.query("find", directory, "!", "-type", "d", "-print", "-quit").text


def _way(host: Host, directory: str) -> list[str]:
    """Where *directory* really is, and what leads there (see _WAY). Raises Error if nobody can tell."""
    found = host.query("sh", "-c", _WAY, "way", directory)
    if not found.ok:
        why = found.stderr.decode(errors="replace").strip()
        hint = "fix the symbolic links in the path, or set spec.dataDirectory to another path"
        raise Error(f"cannot resolve {directory}: {why}", host=host.name, code="DataDirectoryUnknown", hint=hint)
    return found.stdout.decode(errors="replace").splitlines()
