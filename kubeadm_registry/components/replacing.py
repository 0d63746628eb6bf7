"""A node's way to the others as their root, by which it puts another node in the place of one.

It is there only where `operator install --replace-nodes` was run. One SSH key is on all nodes, where root alone reads
it. sshd takes it from the nodes' addresses only, for the user by whom the workstation comes as well (``spec.ssh.user``,
else root): a line in that user's authorized_keys, whose other lines stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from kubeadm_registry import paths, pki
from kubeadm_registry.bundle import TOOL
from kubeadm_registry.bundle.tool import MODULE
from kubeadm_registry.cluster import Cluster, agreed, retiring
from kubeadm_registry.engine.changes import Absent, Directory, File, Steps, unified
from kubeadm_registry.engine.render import render
from kubeadm_registry.errors import Error
from kubeadm_registry.formats import Damaged, Format, Found, kept
from kubeadm_registry.transport.host import FileState, Host

ETC = f"{paths.ETC}/replacing"
"""Root's alone."""
KEY = f"{ETC}/nodes.key"
UNIT = f"{paths.PREFIX}-replace.service"
_UNIT_FILE = f"{paths.UNITS}/{UNIT}"
REQUEST = f"{ETC}/request.json"
"""Which node is to take the place of which."""
WORK = f"{ETC}/work.json"
"""How far that is, and what came of it."""
USERS = f"{ETC}/users.json"
"""Who has a line of ours in authorized_keys on this node: a change of ``spec.ssh.user`` leaves none behind."""
REQUESTED, WORKED, NOTED = Format(REQUEST), Format(WORK), Format(USERS)
#: Ends our line in authorized_keys, by which it is known.
_MARK = "kubeadm-registry replacing"


def line(cluster: Cluster, public: str) -> str:
    """The line of authorized_keys by which the nodes of *cluster*, who have the key *public*, may log in (sshd(8))."""
    addresses = ",".join(address for node in cluster.spec.nodes for address in node.addresses)
    return f'from="{addresses}" {public} {_MARK}'


def key_of(cluster: Cluster, host: Host | None = None) -> str:
    """The private key that more than half of the nodes of *cluster* have; empty if there is none.

    While nodes are away that could decide, it is that of *host*.
    """
    return (agreed(cluster, KEY, undecided=host.read(KEY) if host is not None else None) or b"").decode()


def install(cluster: Cluster, host: Host, private: str) -> Steps:
    """Let *host* reach the other nodes by the key *private*, and let them reach it. Raises Error (ProgramMissing)."""
    yield Directory(ETC, mode=0o700)
    yield File(KEY, private.encode(), mode=0o600, secret=True)
    program = f"{cluster.program(TOOL).prefix}/{MODULE}"
    yield File(_UNIT_FILE, render("helper/replace.j2", program=program))
    user = _user(cluster, host)
    former, found = _former(cluster, host)
    yield _note({user, *former}, found)
    for other in former:
        yield Authorized(other)
    yield Authorized(user, line(cluster, pki.ssh_key(private)[1]))
    yield _note({user}, found)


def remove(cluster: Cluster, host: Host) -> Steps:
    """Take both away, where they are; from a node that leaves the line at last, by ``forget``."""
    if not host.query("test", "-e", ETC).ok:
        return
    for other in _former(cluster, host)[0]:
        yield Authorized(other)
    if all(host.name != one.name for one in retiring(cluster)):
        yield Authorized(_user(cluster, host))
    yield Absent(_UNIT_FILE)
    yield Absent(ETC)


def forget(cluster: Cluster, host: Host) -> Steps:
    """No longer let the other nodes log in to *host*, which has left: until then a run that died can be completed."""
    yield Authorized(_user(cluster, host))


def _user(cluster: Cluster, host: Host) -> str:
    """As whom others log in to *host*, which may be one that leaves."""
    leaving = cluster.change.leaving.values() if cluster.change is not None else ()
    own = [node.ssh for node in (*cluster.spec.nodes, *leaving) if node.name == host.name]
    return (own[0].over(cluster.spec.ssh) if own else cluster.spec.ssh).user or "root"


def _former(cluster: Cluster, host: Host) -> tuple[list[str], Found | None]:
    """Users of *host* who may still have a line, beside the present one; and the record that says so.

    Raises Error (ReplacingDamaged), NewerFormat.
    """
    content = host.read(USERS)
    if content is None:
        return [], None
    try:
        found = NOTED.parse(content)
        users = found.values.get("users", [])
        if not isinstance(users, list) or not all(isinstance(user, str) for user in users):
            raise Damaged("users is not a list of names")
    except Damaged as error:
        raise Error(
            f"{USERS} is damaged: {error}", host=host.name, code="ReplacingDamaged",
            hint=f"remove the file, and each line that ends in '{_MARK}' from authorized_keys of former users",
        ) from error  # fmt: skip
    return sorted({*users} - {_user(cluster, host)}), found


def _note(users: set[str], found: Found | None) -> File:
    return File(USERS, NOTED.render(kept({"users": sorted(users)}, found), found), mode=0o600)


@dataclass(frozen=True, slots=True)
class Authorized:
    """The authorized_keys of *user* have *wanted* as the one line of ours; none if it is empty. All others stay."""

    user: str
    wanted: str = ""

    @property
    def title(self) -> str:
        """What apply does."""
        return f"{'let' if self.wanted else 'no longer let'} the other nodes log in as {self.user}"

    def diff(self, host: Host) -> str | None:
        """The lines that differ."""
        if not self.wanted and not host.query("getent", "passwd", self.user).ok:
            return None  # whoever had a line is no user any more
        path, _ = self._place(host)
        old = host.read(path)
        new = self._changed(old or b"")
        return None if new == (old or b"") else unified(path, old, new)

    def apply(self, host: Host) -> None:
        """Write the file whole; what is new gets the modes that sshd wants. A symbolic link stays one."""
        path, group = self._place(host)
        owner = f"{self.user}:{group}"
        folder = Directory(path.rpartition("/")[0], mode=0o700, owner=owner, as_is=True)
        if folder.diff(host) is not None:
            folder.apply(host)
        found = host.state(path) or FileState(b"", 0o600, owner)
        real = host.query("readlink", "-f", "--", path).text or path
        host.write(real, self._changed(found.content), mode=found.mode, owner=found.owner)

    def _changed(self, old: bytes) -> bytes:
        there = old.decode(errors="surrogateescape").splitlines()
        others = [one for one in there if not one.endswith(f" {_MARK}")]
        if others == there and not self.wanted:
            return old  # nothing of ours: its last line may have no end, or its lines others
        lines = [*others, *([self.wanted] if self.wanted else [])]
        return "".join(f"{one}\n" for one in lines).encode(errors="surrogateescape")

    def _place(self, host: Host) -> tuple[str, str]:
        """The file, and the user's group, which may have a blank in its name. Raises Error (UserUnknown)."""
        entry = host.query("getent", "passwd", self.user).text.strip().split(":")
        if len(entry) < 6:
            raise Error(
                f"there is no user {self.user}", host=host.name, code="UserUnknown",
                hint="set spec.ssh.user to the user that you log in to the nodes as",
            )  # fmt: skip
        return f"{entry[5]}/.ssh/authorized_keys", host.query("id", "-gn", "--", self.user).text
