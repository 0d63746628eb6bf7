"""The changes that point containerd at the registry. What they write is decided in settings, hosts and proxy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kubeadm_registry.containerd import backup, edit, http_proxy, restart, survey
from kubeadm_registry.containerd import hosts as hosts_toml
from kubeadm_registry.containerd.replace import replace as replace_file
from kubeadm_registry.containerd.settings import Edit, InForce, Merged, Refused, Version, contradictions, pauses, plan
from kubeadm_registry.containerd.survey import ConfigFile, Configuration, Containerd
from kubeadm_registry.engine.changes import unified
from kubeadm_registry.transport.host import FileState, Host

DROP_IN = f"/etc/systemd/system/{survey.UNIT}.d/{http_proxy.DROP_IN_NAME}"

#: The permissions of all but a file's owner.
OTHERS = 0o077
#: Begins a configuration file that was not there before.
NEW_CONFIG = "# Written by kubeadm-registry, since there was no such file; reset removes it.\n"


@dataclass(frozen=True, slots=True)
class Config:
    """containerd's configuration reads hosts files and names the pause image; all else in it stays as it is."""

    containerd: Containerd
    version: Version
    config_path: str
    sandbox_image: str | None

    @property
    def title(self) -> str:
        """What apply does."""
        return f"add the registry to {self.containerd.config}"

    def read(self, host: Host) -> tuple[Configuration, Merged]:
        """The configuration as it is, and what it should become. Raises Refused."""
        configuration = survey.configuration(host, self.containerd.config, self.version)
        return configuration, self.plan(host, configuration)

    def plan(self, host: Host, configuration: Configuration) -> Merged:
        """What *configuration* should become. Raises Refused, and Error (BackupDamaged, NewerFormat)."""
        written = backup.record(host).files.values()
        merged = plan(
            configuration.layers,
            containerd=self.version,
            config_path=self.config_path,
            sandbox_image=self.sandbox_image,
            ours=pauses(item for one in written for item in one.undoable),
        )
        if configuration.files:
            return merged
        return replace(merged, texts={path: NEW_CONFIG + text for path, text in merged.texts.items()})

    def diff(self, host: Host) -> str | None:
        """A unified diff of each file that changes, or None."""
        configuration, merged = self.read(host)
        if not merged.texts:
            return None
        olds = {path: configuration.file(path) for path in merged.texts}
        return "\n".join(
            edit.difference(path, old.state.content if (old := olds[path]) else None, text.encode())
            for path, text in merged.texts.items()
        )

    def apply(self, host: Host) -> None:
        """Write each file once containerd accepts it, and see that all we rely on is then in force."""
        configuration, merged = self.read(host)
        restart.mark(host)
        for path, text in merged.texts.items():
            self._write(host, configuration, path, text, [item for item in merged.edits if item.file == path])
        restart.mark(host)
        try:
            self.prove(host, merged.wanted)
        except Refused as error:
            self._take_back(host, configuration, merged)
            error.message += "; the changes are reverted"
            raise

    def _write(self, host: Host, configuration: Configuration, path: str, text: str, edits: list[Edit]) -> None:
        file = configuration.file(path)
        real, before = (file.real, file.state.content) if file else (path, None)
        mode, owner = (file.state.mode, file.state.owner) if file else (0o644, "root:root")
        record = backup.record(host).with_file(
            real,
            edits,
            original=self._original(host, real),
            before=None if before is None else backup.digest(before),
            after=backup.digest(text.encode()),
        )
        # Before the file: if the run dies between the two, the file is the original, which no record contradicts.
        backup.store(host, record)
        if file is None:
            backup.make_parent(host, path)
        shown = file or ConfigFile(path, path, FileState(b"", mode, owner))
        replace_file(host, shown, text.encode(), mode=mode, owner=owner, program=self.containerd.program)

    @staticmethod
    def _original(host: Host, path: str) -> str | None:
        """The digest of the file before us; None if there was none. 0.1 noted no digests, but it has the copy."""
        entry = backup.originals(host).files.get(path)
        if entry is None:
            return None
        if entry.sha256 is not None:
            return entry.sha256
        copy = host.read(backup.copy_of(path))
        return None if copy is None else backup.digest(copy)

    def prove_found(self, host: Host, configuration: Configuration, merged: Merged) -> None:
        """Ask containerd what is in force before any change. Raises Refused as ``prove`` does."""
        # Without a file 1.x has no dump, but starts. What is half-written may keep it from reading, and goes first.
        if configuration.files and not configuration.leftovers:
            self.prove(host, merged.found)

    def prove(self, host: Host, expected: InForce) -> None:
        """Ask containerd itself. Raises Refused if it does not read its configuration, or not as *expected*."""
        dump = survey.dumped(host, self.containerd, self.containerd.config)
        if wrong := list(contradictions(expected, dump, self.version)):
            raise Refused(
                f"{self.containerd.config}: {', and '.join(wrong)}; another table or file takes precedence",
                host=host.name,
                hint="compare containerd's files with what "
                f"`containerd --config {self.containerd.config} config dump` prints",
            )

    def _take_back(self, host: Host, configuration: Configuration, merged: Merged) -> None:
        for path in merged.texts:
            if (file := configuration.file(path)) is not None:
                replace_file(host, file, file.state.content, mode=file.state.mode, owner=file.state.owner)
            else:
                host.run("rm", "-f", "--", path)


#: The names of the directories in ``$1``: containerd looks into ``_default`` for no registry that has one.
_DIRECTORIES = 'cd -- "$1" 2>/dev/null || exit 0; for name in *; do [ ! -d "$name" ] || echo "$name"; done'


@dataclass(frozen=True, slots=True)
class HostsFiles:
    """The CA and one hosts.toml for each registry below *directory*; files that are not ours, or were edited, stay."""

    directory: str
    ca_pem: bytes
    files: Mapping[str, bytes]
    """Registry -> content of its hosts.toml."""
    mode: int = 0o644

    @property
    def title(self) -> str:
        """What apply does."""
        return f"write hosts.toml files in {self.directory}"

    @property
    def ca(self) -> str:
        """Where the CA certificate lies."""
        return f"{self.directory}/{hosts_toml.CA_NAME}"

    @property
    def directories(self) -> list[str]:
        """The directories that are made."""
        return [self.directory, *(f"{self.directory}/{hosts_toml.directories(name)[0]}" for name in self.files)]

    def _there(self, host: Host) -> dict[str, ConfigFile | None]:
        """What is there: path -> file; None for what is no file, such as a link to nowhere."""
        return {path: file for _, path, file in survey.look(host, self.ca, f"{self.directory}/*/hosts.toml")}

    def _wanted(self, there: Mapping[str, ConfigFile | None]) -> dict[str, bytes | None]:
        wanted: dict[str, bytes | None] = {self.ca: self.ca_pem}
        for registry, content in self.files.items():
            paths = [f"{self.directory}/{name}/hosts.toml" for name in hosts_toml.directories(registry)]
            if all(_is_untouched(there[path]) for path in paths if path in there):
                wanted[paths[0]] = content
        for path, file in there.items():
            if path not in wanted and path != self.ca and _is_untouched(file):
                wanted[path] = None
        return {path: content for path, content in wanted.items() if self._difference(path, there.get(path), content)}

    def _difference(self, path: str, file: ConfigFile | None, new: bytes | None) -> str:
        """A unified diff; or that others may read the login in a file that is for root alone."""
        if _content(file) != new:
            return edit.difference(path, _content(file), new)
        if file is None or path == self.ca or self.mode & OTHERS or not file.state.mode & OTHERS:
            return ""
        return f"{path}: mode {file.state.mode:o} -> {self.mode:o}"

    def diff(self, host: Host) -> str | None:
        """A unified diff of each file, what differs in its mode, or None."""
        there = self._there(host)
        said = [self._difference(path, there.get(path), new) for path, new in self._wanted(there).items()]
        return "\n".join(said) or None

    def apply(self, host: Host) -> None:
        """Write the CA first: a hosts.toml that names a file that is not there fails every pull."""
        record = backup.record(host)
        if self.directory not in record.hosts_directories:
            update = {"hosts_directories": (*record.hosts_directories, self.directory)}
            backup.store(host, record.model_copy(update=update))
        there = self._there(host)
        wanted = self._wanted(there)
        made = [path.rpartition("/")[0] for path, content in wanted.items() if content is not None]
        if made:
            host.run("mkdir", "-p", "-m", "755", "--", *dict.fromkeys(made))
        for path, content in wanted.items():
            if content is None:
                host.run("rm", "-f", "--", path)
                # An empty one would keep containerd from looking into _default. A link or a mount point stays.
                host.query("rmdir", "--ignore-fail-on-non-empty", "--", path.rpartition("/")[0])
            else:
                file = there.get(path)
                real = file.real if file else path
                host.write(real, content, mode=0o644 if path == self.ca else self.mode)

    def notices(self, host: Host) -> list[str]:
        """Hosts files that stay as they are although they are not what we would write."""
        there = self._there(host)
        found = []
        for registry in self.files:
            for name in hosts_toml.directories(registry):
                path = f"{self.directory}/{name}/hosts.toml"
                if path in there and not _is_untouched(there[path]):
                    found.append(
                        f"{path} is {_why_it_stays(there[path])} and is left alone, so containerd pulls "
                        f"{registry} as that file says; remove it and run the command again to use this "
                        "registry"
                    )
        if hosts_toml.DEFAULT in self.files:
            listed = host.query("sh", "-c", _DIRECTORIES, "directories", self.directory).text.splitlines()
            found += [
                f"{self.directory}/{name} has no hosts.toml, so containerd pulls from {name} itself and not from this "
                f"registry; remove the directory"
                for name in listed
                if f"{self.directory}/{name}/hosts.toml" not in there
            ]
        default = f"{self.directory}/{hosts_toml.DEFAULT}/hosts.toml"
        if default in there and hosts_toml.DEFAULT not in self.files:
            found.append(
                f"{default} is kept, but no longer applies to {', '.join(self.files)}, which have their own hosts.toml"
            )
        return found

    def hidden(self, host: Host, others: Sequence[str]) -> Iterator[str]:
        """Hosts files of the user in the *others*, directories that come behind this one in ``config_path``."""
        ours = {name for registry in self.files for name in hosts_toml.directories(registry)}
        for _, path, file in survey.look(host, *(f"{directory}/*/hosts.toml" for directory in others)):
            name = path.split("/")[-2]
            if not _is_untouched(file) and (name in ours or hosts_toml.DEFAULT in self.files):
                yield (
                    f"{path} is kept, but no longer applies, because {self.directory} comes first in config_path; to "
                    f"use it, move it to {self.directory}/{name} and run the command again"
                )


def _content(file: ConfigFile | None) -> bytes | None:
    return file.state.content if file else None


def _is_untouched(file: ConfigFile | None) -> bool:
    return file is not None and hosts_toml.is_unmodified(file.state.content)


def _why_it_stays(file: ConfigFile | None) -> str:
    if file is None:
        return "a dangling link, or not a file,"
    return "edited since it was written" if hosts_toml.is_ours(file.state.content) else "not from kubeadm-registry"


@dataclass(frozen=True, slots=True)
class NoProxy:
    """If containerd's unit uses an HTTP proxy, the registry's *hosts* are left out of it."""

    containerd: Containerd
    hosts: tuple[str, ...]

    @property
    def title(self) -> str:
        """What apply does."""
        return f"exclude the registry from the HTTP proxy of {survey.UNIT}"

    def _differences(self, host: Host) -> dict[str, tuple[bytes | None, bytes | None]]:
        there = {file.path: file.state.content for file in survey.read_files(host, DROP_IN, http_proxy.ENVIRONMENT)}
        content = http_proxy.environment_file(survey.environment(host, self.containerd), self.hosts)
        wanted = {
            http_proxy.ENVIRONMENT: content.encode() if content else None,
            DROP_IN: http_proxy.DROP_IN.encode() if content else None,
        }
        return {path: (there.get(path), new) for path, new in wanted.items() if there.get(path) != new}

    def diff(self, host: Host) -> str | None:
        """A unified diff of the drop-in and its variables, or None."""
        return "\n".join(unified(path, *pair) for path, pair in self._differences(host).items()) or None

    def apply(self, host: Host) -> None:
        """Write or remove both files, and let systemd read them."""
        restart.mark(host)
        for path, (_, content) in self._differences(host).items():
            if content is None:
                host.run("rm", "-f", "--", path)
            else:
                backup.make_parent(host, path)
                host.write(path, content)
        host.run("systemctl", "daemon-reload")
        restart.mark(host)
