"""The changes that take us out of containerd's configuration again: byte for byte where nobody else edited since."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kubeadm_registry.containerd import backup, edit, http_proxy, restart, survey
from kubeadm_registry.containerd import hosts as hosts_toml
from kubeadm_registry.containerd.changes import DROP_IN, NEW_CONFIG
from kubeadm_registry.containerd.record import DIRECTORY, Written
from kubeadm_registry.containerd.replace import replace
from kubeadm_registry.containerd.settings import CERTS_D, Refused, plan
from kubeadm_registry.containerd.survey import ConfigFile
from kubeadm_registry.containerd.unmerge import unmerge
from kubeadm_registry.engine.changes import unified
from kubeadm_registry.errors import Error
from kubeadm_registry.transport.host import FileState, Host


def obstacles(host: Host, shown: survey.Containerd | None) -> Iterator[str]:
    """What keeps containerd's files from being put back as they were, a sentence with its remedy each."""
    if found := list(backup.problems(host)):
        yield from found
        return
    try:
        OriginalConfig().diff(host)
        if not backup.is_whole(host) and (left := _unexplained(host, shown)):
            yield (
                f"{DIRECTORY} no longer records what containerd's configuration was before, so {left} would stay: "
                "remove it manually if it was not there before, else remove the hosts.toml files manually that name "
                f"{hosts_toml.CA_NAME}; then run the command again"
            )
    except Error as error:
        yield f"{error.message}: {error.hint}" if error.hint else error.message


def _unexplained(host: Host, shown: survey.Containerd | None) -> str:
    """What in containerd's configuration may be ours, by the hosts files beside it; empty if there is nothing."""
    if shown is None or shown.version is None:
        return ""
    try:
        layers = survey.configuration(host, shown.config, shown.version).layers
        path = plan(layers, containerd=shown.version, config_path=CERTS_D, sandbox_image=None).found.config_path
    except Refused:
        return ""  # it is not as we left it, whoever changed it
    directory = survey.literal(path.partition(":")[0].rstrip("/"))
    files = survey.read_files(host, f"{directory}/*/hosts.toml") if path else []
    ours = any(hosts_toml.is_ours(file.state.content) for file in files)
    return f'config_path = "{path}" in {shown.config} or a file that it imports' if ours else ""


#: Removes those of the directories ``$@`` that are empty.
_PRUNE = 'for path in "$@"; do rmdir -- "$path" 2>/dev/null || :; done'
#: Prints those of the directories ``$@`` that are there and empty, were the ones before it gone.
_EMPTY = 'for path in "$@"; do [ -d "$path" ] && [ -z "$(ls -A -- "$path")" ] && printf "%s\\n" "$path"; done; :'


@dataclass(frozen=True, slots=True)
class OriginalConfig:
    """containerd's configuration is as it was; where somebody edited it since, only our keys are gone."""

    title = "restore containerd's original configuration"

    def _differences(self, host: Host) -> list[tuple[ConfigFile, FileState | None]]:
        """The files that differ from what they should be, and that: None for no file."""
        originals, record = backup.originals(host), backup.record(host)
        found: list[tuple[ConfigFile, FileState | None]] = []
        # Somebody may have put a link in a file's place since: its target is edited then, and it stays a link.
        for now in survey.read_files(host, *map(survey.literal, originals.files)):
            original, written = originals.files[now.path], record.files.get(now.path)
            if written is None or backup.is_original(host, now.path, original, now.state.content):
                continue
            if written.edited or backup.digest(now.state.content) != written.sha256:
                new = _without_ours(now.state, written, is_new=original is None)
            elif original is None:
                new = None
            else:
                new = backup.restored(host, now.path, original, now.state, written)
            if new != now.state:
                found.append((now, new))
        return found

    def diff(self, host: Host) -> str | None:
        """A unified diff of each file, or None."""
        differences = self._differences(host)
        said = [edit.difference(now.path, now.state.content, new.content if new else None) for now, new in differences]
        return "\n".join(said) or None

    def apply(self, host: Host) -> None:
        """Write or remove each file."""
        restart.mark(host)
        for now, new in self._differences(host):
            if new is None:
                host.run("rm", "-f", "--", now.path)
            else:
                replace(host, now, new.content, mode=new.mode, owner=new.owner)
        restart.mark(host)


def _without_ours(now: FileState, written: Written, *, is_new: bool) -> FileState | None:
    """A file that was edited since, without our keys; None if we made it, and nothing else is in it.

    Where somebody had removed it between two runs, we made it although it is not *is_new*.
    """
    lines = edit.lines_of(unmerge(now.content.decode(errors="surrogateescape"), written.undoable))
    rest = [line for line in lines if line.strip() != NEW_CONFIG.strip()]
    text = "".join(rest)
    if not text.strip() and (is_new or len(rest) < len(lines)):
        return None
    return FileState(text.encode(errors="surrogateescape"), now.mode, now.owner)


@dataclass(frozen=True, slots=True)
class NoHostsFiles:
    """No hosts file of ours and no CA; of a file that somebody edited since only what is ours is gone."""

    title = "remove the hosts.toml files"

    def _differences(self, host: Host) -> list[tuple[ConfigFile, bytes | None]]:
        directories = dict.fromkeys((*backup.record(host).hosts_directories, CERTS_D))
        names = ("*/hosts.toml", hosts_toml.CA_NAME)
        patterns = [f"{survey.literal(path)}/{name}" for path in directories for name in names]
        found: list[tuple[ConfigFile, bytes | None]] = []
        for file in survey.read_files(host, *patterns):
            content = file.state.content
            if file.path.endswith(f"/{hosts_toml.CA_NAME}") or hosts_toml.is_unmodified(content):
                found.append((file, None))
            elif hosts_toml.is_ours(content):
                rest = hosts_toml.without_ours(content)
                if rest != content:
                    found.append((file, rest))
        return found

    def diff(self, host: Host) -> str | None:
        """A unified diff of each file, or None."""
        differences = self._differences(host)
        return "\n".join(edit.difference(file.path, file.state.content, new) for file, new in differences) or None

    def apply(self, host: Host) -> None:
        """Write or remove each file; the CA last, since the others name it."""
        for file, content in sorted(self._differences(host), key=lambda one: one[0].path.endswith(hosts_toml.CA_NAME)):
            if content is None:
                host.run("rm", "-f", "--", file.path)
            else:
                replace(host, file, content, mode=file.state.mode, owner=file.state.owner)


@dataclass(frozen=True, slots=True)
class NoLeftovers:
    """Beside the files that are put back or removed nothing is left that a killed run did not finish."""

    title = "remove partially written files of interrupted runs"

    def _leftovers(self, host: Host) -> list[str]:
        hosts = dict.fromkeys((*backup.record(host).hosts_directories, CERTS_D))
        files = (*backup.originals(host).files, DROP_IN, http_proxy.ENVIRONMENT)
        parents = dict.fromkeys(path.rpartition("/")[0] for path in files)
        below = [f"{survey.literal(path)}/*" for path in hosts]
        return survey.leftovers(host, *map(survey.literal, (*parents, *hosts)), *below)

    def diff(self, host: Host) -> str | None:
        """Which files go, or None."""
        return "\n".join(f"{path}: removed" for path in self._leftovers(host)) or None

    def apply(self, host: Host) -> None:
        """Remove them."""
        host.run("rm", "-f", "--", *self._leftovers(host))


@dataclass(frozen=True, slots=True)
class ProxyDropInRemoved:
    """No drop-in of ours in containerd's unit."""

    title = f"remove {DROP_IN}"

    def diff(self, host: Host) -> str | None:
        """That it is there, or None."""
        files = survey.read_files(host, DROP_IN, http_proxy.ENVIRONMENT)
        return "\n".join(unified(file.path, file.state.content, None) for file in files) or None

    def apply(self, host: Host) -> None:
        """Remove it and let systemd forget it."""
        restart.mark(host)
        host.run("rm", "-f", "--", DROP_IN, http_proxy.ENVIRONMENT)
        host.run("systemctl", "daemon-reload")
        restart.mark(host)


@dataclass(frozen=True, slots=True)
class DirectoriesRemoved:
    """The directories that were not there before us are gone, unless somebody put something in."""

    title = "remove the directories that were created"

    def _deepest_first(self, host: Host) -> list[str]:
        return sorted(backup.originals(host).directories, key=lambda path: path.count("/"), reverse=True)

    def diff(self, host: Host) -> str | None:
        """Which of them are empty, or None."""
        paths = self._deepest_first(host)
        empty = host.query("sh", "-c", _EMPTY, "empty", *paths).text.splitlines() if paths else []
        return "\n".join(f"{path}: removed" for path in empty) or None

    def apply(self, host: Host) -> None:
        """Remove them, the innermost first."""
        host.run("sh", "-c", _PRUNE, "prune", *self._deepest_first(host))


@dataclass(frozen=True, slots=True)
class BackupRemoved:
    """The copies and the record are gone: the next init begins anew."""

    title = "remove the backup of containerd's configuration"

    def diff(self, host: Host) -> str | None:
        """That they are there, or None."""
        there = host.query("test", "-d", DIRECTORY).ok
        return f"{DIRECTORY}: removed" if there else None

    def apply(self, host: Host) -> None:
        """Remove them."""
        host.run("rm", "-rf", "--one-file-system", "--", DIRECTORY)
