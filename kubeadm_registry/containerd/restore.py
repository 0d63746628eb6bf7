"""The changes that take us out of containerd's configuration again: byte for byte where nobody else edited since."""

from __future__ import annotations

from dataclasses import dataclass

from kubeadm_registry.changes import unified
from kubeadm_registry.containerd import backup, proxy, restart, survey
from kubeadm_registry.containerd import hosts as hosts_toml
from kubeadm_registry.containerd.changes import DROP_IN, NEW_CONFIG
from kubeadm_registry.containerd.settings import CERTS_D, unmerge
from kubeadm_registry.host import FileState, Host

#: Removes those of the directories ``$@`` that are empty.
_PRUNE = 'for path in "$@"; do rmdir -- "$path" 2>/dev/null || :; done'
#: Prints those of the directories ``$@`` that are there and empty, were the ones before it gone.
_EMPTY = 'for path in "$@"; do [ -d "$path" ] && [ -z "$(ls -A -- "$path")" ] && printf "%s\\n" "$path"; done; :'


@dataclass(frozen=True, slots=True)
class OriginalConfig:
    """containerd's configuration is as it was; where somebody edited it since, only our keys are gone."""

    title: str = "put containerd's configuration back"

    def _differences(self, host: Host) -> dict[str, tuple[FileState | None, FileState | None]]:
        originals, record = backup.Originals.read(host), backup.Record.read(host)
        found: dict[str, tuple[FileState | None, FileState | None]] = {}
        for path in originals.files:
            now, written = host.state(path), record.files.get(path)
            if now is None or written is None:
                continue
            original = originals.state(host, path)
            new = _back(now, written, original)
            if new != now:
                found[path] = (now, new)
        return found

    def diff(self, host: Host) -> str | None:
        """A unified diff of each file, or None."""
        said = []
        for path, (now, new) in self._differences(host).items():
            same = now and new and now.content == new.content
            old_bytes, new_bytes = (now.content if now else None), (new.content if new else None)
            said.append(f"{path}: mode and owner as before" if same else unified(path, old_bytes, new_bytes))
        return "\n".join(said) or None

    def apply(self, host: Host) -> None:
        """Write or remove each file."""
        restart.mark(host)
        for path, (_, new) in self._differences(host).items():
            if new is None:
                host.run("rm", "-f", "--", path)
            else:
                host.write(path, new.content, mode=new.mode, owner=new.owner)
        restart.mark(host)


def _back(now: FileState, written: backup.Written, original: FileState | None) -> FileState | None:
    """What becomes of a file that is *now* and was *original* before us."""
    if original is not None and now.content == original.content:
        return now
    if not written.edited and backup.digest(now.content) == written.digest:
        return original
    text = unmerge(now.content.decode(errors="surrogateescape"), written.edits)
    rest = text.removeprefix(NEW_CONFIG)
    if original is None and not rest.strip():
        return None
    content = (rest if original is None else text).encode(errors="surrogateescape")
    return FileState(content, now.mode, now.owner)


@dataclass(frozen=True, slots=True)
class NoHostsFiles:
    """No hosts file of ours and no CA; of a file that somebody edited since only what is ours is gone."""

    title: str = "remove the hosts files"

    def _differences(self, host: Host) -> dict[str, tuple[bytes, bytes | None]]:
        directories = dict.fromkeys((*backup.Record.read(host).hosts_directories, CERTS_D))
        patterns = [f"{path}/{name}" for path in directories for name in ("*/hosts.toml", hosts_toml.CA_NAME)]
        found: dict[str, tuple[bytes, bytes | None]] = {}
        for file in survey.show(host, *patterns):
            content = file.state.content
            if file.path.endswith(f"/{hosts_toml.CA_NAME}"):
                found[file.path] = (content, None)
            elif hosts_toml.is_ours(content):
                untouched = hosts_toml.is_untouched(content)
                rest = None if untouched else hosts_toml.without_ours(content)
                if rest != content:
                    found[file.path] = (content, rest)
        return found

    def diff(self, host: Host) -> str | None:
        """A unified diff of each file, or None."""
        return "\n".join(hosts_toml.difference(path, *pair) for path, pair in self._differences(host).items()) or None

    def apply(self, host: Host) -> None:
        """Write or remove each file; the CA last, since the others name it."""
        for path, (_, content) in sorted(
            self._differences(host).items(), key=lambda item: hosts_toml.CA_NAME in item[0]
        ):
            if content is None:
                host.run("rm", "-f", "--", path)
            else:
                host.write(path, content)


@dataclass(frozen=True, slots=True)
class NoNoProxy:
    """No drop-in of ours in containerd's unit."""

    title: str = f"remove {DROP_IN}"

    def diff(self, host: Host) -> str | None:
        """That it is there, or None."""
        files = survey.show(host, DROP_IN, proxy.ENVIRONMENT)
        return "\n".join(unified(file.path, file.state.content, None) for file in files) or None

    def apply(self, host: Host) -> None:
        """Remove it and let systemd forget it."""
        restart.mark(host)
        host.run("rm", "-f", "--", DROP_IN, proxy.ENVIRONMENT)
        host.run("systemctl", "daemon-reload")
        restart.mark(host)


@dataclass(frozen=True, slots=True)
class NoDirectories:
    """The directories that were not there before us are gone, unless somebody put something in."""

    title: str = "remove the directories that were made"

    def _deepest_first(self, host: Host) -> list[str]:
        return sorted(backup.Originals.read(host).directories, key=lambda path: path.count("/"), reverse=True)

    def diff(self, host: Host) -> str | None:
        """Which of them are empty, or None."""
        paths = self._deepest_first(host)
        empty = host.query("sh", "-c", _EMPTY, "empty", *paths).text.splitlines() if paths else []
        return "\n".join(f"{path}: removed" for path in empty) or None

    def apply(self, host: Host) -> None:
        """Remove them, the innermost first."""
        host.run("sh", "-c", _PRUNE, "prune", *self._deepest_first(host))


@dataclass(frozen=True, slots=True)
class Forget:
    """The copies and the record are gone: the next init begins anew."""

    title: str = "forget the copies of containerd's configuration"

    def diff(self, host: Host) -> str | None:
        """That they are there, or None."""
        there = host.query("test", "-d", backup.DIRECTORY).ok
        return f"{backup.DIRECTORY}: removed" if there else None

    def apply(self, host: Host) -> None:
        """Remove them."""
        host.run("rm", "-rf", "--one-file-system", "--", backup.DIRECTORY)
