"""The changes that point containerd at the registry. What they write is decided in settings, hosts and proxy."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kubeadm_registry.changes import unified
from kubeadm_registry.containerd import backup, edit, proxy, restart, survey
from kubeadm_registry.containerd import hosts as hosts_toml
from kubeadm_registry.containerd.settings import Edit, Merged, Refused, Version, plan
from kubeadm_registry.containerd.survey import Configuration, Containerd
from kubeadm_registry.host import Host

DROP_IN = f"/etc/systemd/system/{survey.UNIT}.d/{proxy.DROP_IN_NAME}"

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
        return f"merge the registry into {self.containerd.config}"

    def read(self, host: Host) -> tuple[Configuration, Merged]:
        """The configuration as it is, and what it should become. Raises Refused."""
        configuration = survey.configuration(host, self.containerd.config, self.version)
        return configuration, self.plan(configuration)

    def plan(self, configuration: Configuration) -> Merged:
        """What *configuration* should become. Raises Refused."""
        merged = plan(
            configuration.layers,
            containerd=self.version,
            config_path=self.config_path,
            sandbox_image=self.sandbox_image,
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
            unified(path, old.state.content if (old := olds[path]) else None, text.encode())
            for path, text in merged.texts.items()
        )

    def apply(self, host: Host) -> None:
        """Write each file once containerd accepts it, and see that containerd then reads the hosts files."""
        configuration, merged = self.read(host)
        restart.mark(host)
        for path, text in merged.texts.items():
            self._write(host, configuration, path, text, [item for item in merged.edits if item.file == path])
        restart.mark(host)
        self._prove(host, configuration, merged)

    def _write(self, host: Host, configuration: Configuration, path: str, text: str, edits: list[Edit]) -> None:
        file = configuration.file(path)
        real, before = (file.real, file.state.content) if file else (path, None)
        mode, owner = (file.state.mode, file.state.owner) if file else (0o644, "root:root")
        originals = backup.Originals.read(host)
        original = originals.state(host, real) if real in originals.files else None
        record = backup.Record.read(host).with_file(
            real,
            edits,
            original=original.content if original else None,
            before=before,
            after=text.encode(),
        )
        # Before the file: if the run dies between the two, the file is the original, which no record contradicts.
        record.write(host)
        if file is None:
            backup.make_parent(host, path)
        check = (self.containerd.program, "--config", "{path}", "config", "dump")
        host.write(real, text.encode(), mode=mode, owner=owner, validate=("sh", "-c", _QUIETLY, "check", *check))

    def _prove(self, host: Host, configuration: Configuration, merged: Merged) -> None:
        if any(item.key == "config_path" for item in merged.edits):
            dump = survey.dumped(host, self.containerd, self.containerd.config)
            if merged.config_path not in _config_paths(dump):
                for path in merged.texts:
                    if (file := configuration.file(path)) is not None:
                        host.write(file.real, file.state.content, mode=file.state.mode, owner=file.state.owner)
                    else:
                        host.run("rm", "-f", "--", path)
                raise Refused(
                    f"{self.containerd.config}: config_path was set, and containerd does not see it: another file wins",
                    host=host.name,
                    hint="the file is as it was before; compare it with what "
                    f"`containerd --config {self.containerd.config} config dump` says",
                )


#: Runs ``$@`` where systemd runs it, without its output, which is the whole configuration, but with its errors.
_QUIETLY = 'cd / && exec "$@" > /dev/null'


def _config_paths(dump: str) -> set[Any]:
    values = tomllib.loads(dump)
    plugins = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images")
    return {edit.get(values, ("plugins", plugin, "registry", "config_path")) for plugin in plugins}


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
        return f"write hosts files below {self.directory}"

    @property
    def ca(self) -> str:
        """Where the CA certificate lies."""
        return f"{self.directory}/{hosts_toml.CA_NAME}"

    @property
    def directories(self) -> list[str]:
        """The directories that are made."""
        return [self.directory, *(f"{self.directory}/{hosts_toml.directories(name)[0]}" for name in self.files)]

    def _there(self, host: Host) -> dict[str, bytes]:
        shown = survey.show(host, self.ca, f"{self.directory}/*/hosts.toml")
        return {file.path: file.state.content for file in shown}

    def _wanted(self, there: Mapping[str, bytes]) -> dict[str, bytes | None]:
        wanted: dict[str, bytes | None] = {self.ca: self.ca_pem}
        for registry, content in self.files.items():
            paths = [f"{self.directory}/{name}/hosts.toml" for name in hosts_toml.directories(registry)]
            if all(hosts_toml.is_untouched(there[path]) for path in paths if path in there):
                wanted[paths[0]] = content
        for path, content in there.items():
            if path not in wanted and path != self.ca and hosts_toml.is_untouched(content):
                wanted[path] = None
        return {path: content for path, content in wanted.items() if there.get(path) != content}

    def diff(self, host: Host) -> str | None:
        """A unified diff of each file, or None."""
        there = self._there(host)
        wanted = self._wanted(there)
        return "\n".join(hosts_toml.difference(path, there.get(path), new) for path, new in wanted.items()) or None

    def apply(self, host: Host) -> None:
        """Write the CA first: a hosts.toml that names a file that is not there fails every pull."""
        record = backup.Record.read(host)
        if self.directory not in record.hosts_directories:
            replace(record, hosts_directories=(*record.hosts_directories, self.directory)).write(host)
        wanted = self._wanted(self._there(host))
        made = [path.rpartition("/")[0] for path, content in wanted.items() if content is not None]
        if made:
            host.run("mkdir", "-p", "-m", "755", "--", *dict.fromkeys(made))
        for path, content in wanted.items():
            if content is None:
                host.run("rm", "-f", "--", path)
            else:
                host.write(path, content, mode=0o644 if path == self.ca else self.mode)

    def notices(self, host: Host) -> list[str]:
        """Hosts files that stay as they are although they are not what we would write."""
        there = self._there(host)
        found = []
        for registry in self.files:
            for name in hosts_toml.directories(registry):
                path = f"{self.directory}/{name}/hosts.toml"
                if path in there and not hosts_toml.is_untouched(there[path]):
                    why = "edited since it was written" if hosts_toml.is_ours(there[path]) else "not ours"
                    found.append(
                        f"{path} is {why} and stays as it is: containerd finds {registry} as that file says; "
                        "remove it and run again to take the images from this registry"
                    )
        default = f"{self.directory}/_default/hosts.toml"
        if default in there:
            found.append(f"{default} stays, and no longer counts for {', '.join(self.files)}: a file of its own wins")
        return found


@dataclass(frozen=True, slots=True)
class NoProxy:
    """If containerd's unit uses an HTTP proxy, the registry's *hosts* are left out of it."""

    containerd: Containerd
    hosts: tuple[str, ...]

    @property
    def title(self) -> str:
        """What apply does."""
        return f"keep the registry out of the HTTP proxy of {survey.UNIT}"

    def _differences(self, host: Host) -> dict[str, tuple[bytes | None, bytes | None]]:
        there = {file.path: file.state.content for file in survey.show(host, DROP_IN, proxy.ENVIRONMENT)}
        content = proxy.environment_file(survey.environment(host, self.containerd), self.hosts)
        wanted = {
            proxy.ENVIRONMENT: content.encode() if content else None,
            DROP_IN: proxy.DROP_IN.encode() if content else None,
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
