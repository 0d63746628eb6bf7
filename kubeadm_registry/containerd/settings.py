"""What containerd's configuration should say for the mirrors to be used, and which edits of which file make it so.

Sources: containerd's services/server/config/config.go (1.6, 1.7) and cmd/containerd/server/config/config.go (2.x) for
the order of files and how they are merged, pkg/cri/config and plugins/cri/images/plugin.go for the keys,
internal/cri/config/config.go and internal/cri/server/images/image_pull.go (2.1 and later) for the ways to pull.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from kubeadm_registry.containerd import edit
from kubeadm_registry.errors import Error

#: Where hosts files are looked up when containerd's configuration names no place.
CERTS_D = "/etc/containerd/certs.d"
#: The same of containerd 2.2 and later, and what ``containerd config default`` of 2.2.0 and 2.2.1 writes out.
DEFAULT_PATHS = f"{CERTS_D}:/etc/docker/certs.d"
CONFIG = "/etc/containerd/config.toml"

_PAUSES = ("3.5", "3.6", "3.7", "3.8", "3.9", "3.10", "3.10.1", "3.10.2")
#: The pause images that containerd's releases want where nothing else is set.
PAUSE_IMAGES = frozenset(f"registry.k8s.io/pause:{tag}" for tag in _PAUSES)
#: The same, and under the old name. ``containerd config default`` writes it out, so a file that holds one of these
#: says nothing about what its owner wants.
DEFAULT_PAUSE_IMAGES = PAUSE_IMAGES | {f"k8s.gcr.io/pause:{tag}" for tag in _PAUSES}

_CRI_1 = ("plugins", "cri")
_CRI_2 = ("plugins", "io.containerd.grpc.v1.cri")
_IMAGES_3 = ("plugins", "io.containerd.cri.v1.images")
_CRI_PLUGINS = frozenset(
    {
        "cri",
        "io.containerd.grpc.v1.cri",
        "io.containerd.cri.v1.images",
        "io.containerd.cri.v1.runtime",
    }
)


#: 1.x starts with files that are no TOML, such as one with a byte order mark, or with control characters in comments.
FIX_TOML = "fix the TOML and run the command again; containerd 2.x does not start with this file"


class Refused(Error):
    """containerd's configuration is such that adding to it would break it or have no effect."""

    code = "ContainerdConfig"


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A release of containerd; ``text`` is how it names itself."""

    major: int
    minor: int
    text: str = dataclasses.field(default="", compare=False)

    @classmethod
    def parse(cls, output: str) -> Self | None:
        """From the output of ``containerd --version``; None if there is no version in it."""
        for word in output.split():
            numbers = word.removeprefix("v").split(".")
            if len(numbers) >= 2 and numbers[0].isdigit() and numbers[1].isdigit():
                return cls(int(numbers[0]), int(numbers[1]), word.removeprefix("v"))
        return None

    @property
    def schema(self) -> int:
        """The version of a configuration file that this release and all later ones of its line read."""
        return 2 if self.major < 2 else 3

    @property
    def last_schema(self) -> int:
        """The highest version of a configuration file that this release reads."""
        return 2 if self.major < 2 else 3 if self < Version(2, 3) else 99  # which later ones read nobody knows

    @property
    def has_dial_timeout(self) -> bool:
        """Whether hosts.toml knows ``dial_timeout``; older releases wait 30 s for an address that nobody has."""
        return self >= Version(2, 1)

    @property
    def has_default_config_path(self) -> bool:
        """Whether DEFAULT_PATHS is in force where the configuration names no place."""
        return self >= Version(2, 2)

    @property
    def has_transfer_service(self) -> bool:
        """Whether images are pulled by it, unless the configuration says otherwise.

        It takes a list of directories for the name of one, which is not there: hosts files are not read, and nothing is
        logged (https://github.com/containerd/containerd/issues/12808).
        """
        return self >= Version(2, 1)

    def __str__(self) -> str:
        return self.text or f"{self.major}.{self.minor}"


@dataclass(frozen=True, slots=True)
class Layer:
    """One file of containerd's configuration, in the order in which containerd reads them."""

    path: str
    text: str
    values: dict[str, Any]

    @classmethod
    def read(cls, path: str, content: bytes) -> Self:
        """Raises Refused, with path and line, if *content* is not TOML in UTF-8."""
        try:
            text = content.decode()
            return cls(path, text, edit.parse(text))
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            raise Refused(f"{path}: line {line}: not UTF-8", hint="save the file as UTF-8") from error
        except edit.Unparsable as error:
            raise Refused(f"{path}: {error}", hint=FIX_TOML) from error

    @property
    def imports(self) -> tuple[str, ...]:
        """The files, or patterns of files, that this one pulls in."""
        imports = self.values.get("imports", [])
        return tuple(str(item) for item in imports) if isinstance(imports, list) else ()

    @property
    def version(self) -> int:
        """The file's version; 0 if it does not say."""
        version = self.values.get("version", 0)
        return version if isinstance(version, int) else 0


@dataclass(frozen=True, slots=True)
class Edit:
    """One key of one file: *old* is None where the key was not set. *opens* the table: it had no header before.

    *former* are values that we set before *new*, which a run that died may have left in the file.
    """

    file: str
    table: tuple[str, ...]
    key: str
    new: str | int
    old: str | None = None
    opens: bool = False
    former: tuple[str | int, ...] = ()

    def apply(self, text: str) -> str:
        """*text* with the key set."""
        return edit.set_key(text, self.table, self.key, self.new)


@dataclass(frozen=True, slots=True)
class InForce:
    """What containerd makes of its files. An empty ``config_path`` is its default, a pause image of None any other."""

    config_path: str
    sandbox_image: str | None


@dataclass(frozen=True, slots=True)
class Merged:
    """What comes of a merge: the new texts of the files that change, how, and what the reader should know.

    *found* is what should be in force before it, *wanted* afterwards.
    """

    texts: dict[str, str]
    edits: tuple[Edit, ...]
    found: InForce
    wanted: InForce
    notices: tuple[str, ...] = ()

    @property
    def directories(self) -> tuple[str, ...]:
        """Those of ``config_path``; what the first one has for a registry wins over the others.

        containerd reads an empty one as none, and one that is relative from ``/``, where systemd starts it.
        """
        named = [path.rstrip("/") or CERTS_D for path in self.wanted.config_path.split(":") if path] or [CERTS_D]
        return tuple(path if path.startswith("/") else posixpath.normpath(f"/{path}") for path in named)

    @property
    def hosts_directory(self) -> str:
        """Where hosts files go."""
        return self.directories[0]


@dataclass(frozen=True, slots=True)
class _Setting:
    """A key as files of each version name it."""

    name: str
    tables: dict[int, tuple[str, ...]]
    keys: dict[int, str]

    def place(self, schema: int) -> tuple[tuple[str, ...], str]:
        at = min(max(schema, 1), 3)
        return self.tables[at], self.keys[at]


_CONFIG_PATH = _Setting(
    "config_path",
    {1: (*_CRI_1, "registry"), 2: (*_CRI_2, "registry"), 3: (*_IMAGES_3, "registry")},
    {1: "config_path", 2: "config_path", 3: "config_path"},
)
_SANDBOX = _Setting(
    "pause image",
    {1: _CRI_1, 2: _CRI_2, 3: (*_IMAGES_3, "pinned_images")},
    {1: "sandbox_image", 2: "sandbox_image", 3: "sandbox"},
)
#: Settings with which containerd pulls by itself, not by the transfer service: those other than these defaults.
_LOCAL_PULL: dict[str, bool | int] = {
    "use_local_image_pull": False,
    "disable_snapshot_annotations": True,
    "discard_unpacked_layers": False,
    "max_concurrent_downloads": 3,
    "image_pull_with_sync_fs": False,
}


def _schema(layers: Sequence[Layer], layer: Layer, containerd: Version) -> int:
    """By which version's names containerd looks up a file's plugins.

    1.x takes the last version that any file names for all of them. So do 2.0 to 2.2, from 2 on, and 3 where no file
    names one; from 2.3 on each file is converted on its own. All of 2.x give short names their long ones first.
    """
    named = [other.version for other in reversed(layers) if other.version]
    if containerd.major < 2:
        return next(iter(named), 1)
    short = layer.version < 2 and edit.get(layer.values, _CRI_1) is not None
    if containerd < Version(2, 3):
        overall = next((version for version in named if version >= 2), 3)
        return 1 if short and overall == 2 else overall
    if layer.version >= 2 or short:
        return max(layer.version, 1)
    return next((at for at, table in ((2, _CRI_2), (3, _IMAGES_3)) if edit.get(layer.values, table) is not None), 1)


#: A table and a key in it.
_Place = tuple[tuple[str, ...], str]


def _effective(layers: Sequence[Layer], containerd: Version, setting: _Setting) -> tuple[Layer, _Place, Any]:
    """The file that decides *setting*, under which name, and the value that containerd takes (None: not set)."""
    for layer in reversed(layers):
        for table, key in _places(layers, layer, containerd, setting):
            value = edit.get(layer.values, (*table, key))
            if containerd.major < 2:
                # The last file that has the plugin's table replaces those of all others, also where it is silent.
                if edit.get(layer.values, _plugin(table)) is not None:
                    return layer, (table, key), value
            elif value is not None:
                return layer, (table, key), value
    places = {layer.path: setting.place(_schema(layers, layer, containerd)) for layer in layers}
    if containerd.major >= 2 and not layers[0].version:
        # Tables are merged key by key, so any file will do: the main one, for a drop-in may be written anew by whoever
        # made it, as NVIDIA's toolkit does. One without a version leaves it to the one that has the table already.
        for layer in reversed(layers):
            table, _ = places[layer.path]
            if edit.get(layer.values, _plugin(table)) is not None:
                return layer, places[layer.path], None
    return layers[0], places[layers[0].path], None


def _places(layers: Sequence[Layer], layer: Layer, containerd: Version, setting: _Setting) -> list[_Place]:
    """Where a file may set *setting*, first what wins: from 2.3 on old names do, also in files of version 3."""
    schemas = [_schema(layers, layer, containerd)]
    if containerd >= Version(2, 3) and layer.version < 4:
        schemas = [1, 2, 3] if schemas[0] == 1 else [2, 3]
    return [setting.place(schema) for schema in schemas]


def other_places(table: tuple[str, ...], key: str) -> list[_Place]:
    """Where files of other versions have the setting that is *key* of *table*."""
    known = ([setting.place(schema) for schema in (1, 2, 3)] for setting in (_CONFIG_PATH, _SANDBOX))
    return [place for places in known if (table, key) in places for place in places if place != (table, key)]


def _plugin(table: tuple[str, ...]) -> tuple[str, ...]:
    return table[:2]


def refusals(layers: Sequence[Layer], containerd: Version) -> Iterator[Refused]:
    """Everything in *layers* that keeps the mirrors from being used, each with its remedy."""
    for layer in layers:
        if layer.version > containerd.last_schema:
            yield Refused(
                f"{layer.path}: version = {layer.version}, which containerd {containerd} does not support",
                hint=f"convert the file to version = {containerd.last_schema}, or use a newer containerd",
            )
        disabled = layer.values.get("disabled_plugins")
        for plugin in disabled if isinstance(disabled, list) else ():
            if str(plugin) in _CRI_PLUGINS:
                yield Refused(
                    f'{layer.path}: disabled_plugins contains "{plugin}": kubelet cannot use this containerd',
                    hint=f'remove "{plugin}" from disabled_plugins and restart containerd; if kubelet uses CRI-O or '
                    "cri-dockerd here, leave the node out or skip this phase (--skip-phases containerd)",
                )
    if not layers:
        return
    yield from _ignored(layers, containerd)
    layer, _, mirrors = _effective(layers, containerd, _registry_key("mirrors"))
    if mirrors:
        yield Refused(
            f"{layer.path}: registry.mirrors is set, which containerd rejects together with config_path",
            hint=_as_hosts_files(mirrors),
        )
    layer, _, configs = _effective(layers, containerd, _registry_key("configs"))
    for host, config in configs.items() if isinstance(configs, dict) else ():
        if isinstance(config, dict) and config.get("tls"):
            yield Refused(
                f'{layer.path}: registry.configs."{host}".tls is set, which containerd rejects together with '
                "config_path",
                hint=f"write ca, client or skip_verify to {CERTS_D}/{host}/hosts.toml instead and remove the tls table",
            )


def _ignored(layers: Sequence[Layer], containerd: Version) -> Iterator[Refused]:
    """CRI tables under names that 2.0 to 2.2 look up only if the last file that names a version names 2.

    ``containerd config migrate`` of these releases leaves them out as well, so it is no remedy.
    """
    latest = next((layer for layer in reversed(layers) if layer.version >= 2), None)
    if not Version(2, 0) <= containerd < Version(2, 3) or (latest is not None and latest.version == 2):
        return
    for layer in layers:
        for table in (_CRI_1, _CRI_2):
            if layer.version >= 3 or not edit.get(layer.values, table):
                continue
            said = f"{layer.path}: containerd {containerd} ignores [{edit.dotted(table)}]"
            if latest is None or layer.version < 2:
                yield Refused(
                    f"{said} in a file without version = 2",
                    hint=f'add "version = 2" at its top and write [{edit.dotted(_CRI_2)}...] in place of '
                    "[plugins.cri...], "
                    "then restart containerd",
                )
            else:
                yield Refused(
                    f"{said}, because {latest.path} has version = {latest.version}",
                    hint="convert all containerd configuration files to one version, then restart containerd",
                )


def _reads_one_directory(layers: Sequence[Layer], containerd: Version) -> bool:
    """Whether hosts files are found only where ``config_path`` is one directory, not where it is a list."""
    if not containerd.has_transfer_service:
        return False
    tables: dict[int, tuple[str, ...]] = {1: _CRI_1, 2: _CRI_2, 3: _IMAGES_3}
    for key, default in _LOCAL_PULL.items():
        _, _, value = _effective(layers, containerd, _Setting(key, tables, dict.fromkeys(tables, key)))
        if value is not None and value != default:
            return False
    return not any(_effective(layers, containerd, _registry_key(key))[2] for key in ("mirrors", "configs", "auths"))


def _registry_key(key: str) -> _Setting:
    return _Setting(key, _CONFIG_PATH.tables, dict.fromkeys((1, 2, 3), key))


def _as_hosts_files(mirrors: Any) -> str:
    """The mirrors of the old form in the new one, for a person to copy."""
    files = []
    for name, mirror in mirrors.items() if isinstance(mirrors, dict) else ():
        found = edit.get(mirror, ("endpoint",))
        endpoints = found if isinstance(found, list) else ()
        tables = " ".join(f'[host."{endpoint}"]' for endpoint in endpoints)
        directory = "_default" if name == "*" else name
        files.append(f"{CERTS_D}/{directory}/hosts.toml with {tables}")
    return f"write {'; '.join(files)}; then remove the mirrors tables"


def pauses(edits: Iterable[Edit]) -> frozenset[str]:
    """The pause images that *edits* set, now or earlier."""
    keys = _SANDBOX.keys.values()
    return frozenset(str(value) for one in edits if one.key in keys for value in (one.new, *one.former))


def plan(
    layers: Sequence[Layer], *, containerd: Version, config_path: str, sandbox_image: str | None,
    ours: Collection[str] = (),
) -> Merged:  # fmt: skip
    """Which keys to set in which files so that hosts files are read and pods start with *sandbox_image*.

    *layers* are all files that containerd reads, in its order, the main one first; it may be empty text. A
    ``config_path`` that is set stays, unless it is containerd's own list of directories and containerd would not find
    hosts files by it. A pause image that is set stays too, unless it is one of containerd's own
    defaults, which ``containerd config default`` writes out and which the registry need not hold, or one of *ours*,
    which an earlier cluster file asked for. Raises Refused.
    """
    for refusal in refusals(layers, containerd):
        raise refusal
    layers = list(layers)
    edits: list[Edit] = []
    notices: list[str] = []

    def add(file: str, table: tuple[str, ...], key: str, new: str | int, old: str | None = None) -> None:
        at = next(index for index, layer in enumerate(layers) if layer.path == file)
        text = layers[at].text
        change = Edit(file, table, key, new, old)
        had_header = edit.has_header(text, table)
        try:
            text = change.apply(text)
        except edit.Uneditable as error:
            raise Refused(
                f"{file}: {error}", hint=f"set {key} = {edit.literal(new)} in [{edit.dotted(table)}] manually"
            ) from error
        layers[at] = Layer(file, text, edit.parse(text))
        edits.append(dataclasses.replace(change, opens=not had_header and edit.has_header(text, table)))

    path_layer, _, first = _effective(layers, containerd, _CONFIG_PATH)
    effective_path = first if isinstance(first, str) and first else ""
    pause_layer, _, pause = _effective(layers, containerd, _SANDBOX)
    needs_one = _reads_one_directory(layers, containerd)
    if effective_path in ("", DEFAULT_PATHS):
        wants_path = needs_one or not (effective_path or containerd.has_default_config_path)
    else:
        wants_path = False
        if needs_one and ":" in effective_path:
            notices.append(
                f"{path_layer.path}: config_path is {effective_path}, but containerd {containerd} reads hosts files "
                "only if it is one directory (https://github.com/containerd/containerd/issues/12808); set it to "
                f"{effective_path.partition(':')[0]}, or set use_local_image_pull = true, then restart containerd"
            )
    is_default = not pause or str(pause) in DEFAULT_PAUSE_IMAGES or str(pause) in ours
    wants_pause = sandbox_image is not None and pause != sandbox_image and is_default
    if sandbox_image is not None and pause != sandbox_image and not is_default:
        notices.append(
            f"{pause_layer.path}: the pause image is {pause}, but kubeadm expects {sandbox_image}; it is left "
            f"alone, and pods start only if {pause} is in the registry or on this node"
        )
    if (wants_path or wants_pause) and _is_blank(layers):
        # A file without a version is of version 1, whose plugin names nobody uses any more.
        add(layers[0].path, (), "version", containerd.schema)
    for setting, value in ((_CONFIG_PATH, config_path if wants_path else None),
                           (_SANDBOX, sandbox_image if wants_pause else None)):  # fmt: skip
        if value is not None:
            layer, (table, key), old = _effective(layers, containerd, setting)
            add(layer.path, table, key, value, old if isinstance(old, str) else None)
    changed = {change.file for change in edits}
    return Merged(
        {layer.path: layer.text for layer in layers if layer.path in changed},
        tuple(edits),
        InForce(effective_path, sandbox_image if pause == sandbox_image else None),
        InForce(
            config_path if wants_path else effective_path,
            sandbox_image if wants_pause or pause == sandbox_image else None,
        ),
        tuple(notices),
    )


def _is_blank(layers: Sequence[Layer]) -> bool:
    """Whether no file names a version, nor anything whose name depends on it."""
    return all(not layer.version and is_unversioned(layer.values) for layer in layers)


def is_unversioned(values: dict[str, Any]) -> bool:
    """Whether nothing in a file's *values* has a name that depends on the file's version."""
    return not any(values.get(key) for key in ("plugins", "disabled_plugins", "required_plugins"))


def contradictions(expected: InForce, dump: str, containerd: Version) -> Iterator[str]:
    """What the output of ``containerd config dump`` shows otherwise than *expected*, a clause each."""
    values = edit.parse(dump)

    def dumped(setting: _Setting) -> Any:
        # containerd prints its newest version, in which 2.x has moved both keys to another plugin.
        table, key = setting.place(3 if containerd.major >= 2 else 2)
        return edit.get(values, (*table, key)) or ""

    default = DEFAULT_PATHS if containerd.has_default_config_path else ""
    if (dumped(_CONFIG_PATH) or default) != (expected.config_path or default):
        yield f"config_path should be {expected.config_path or 'unset'} and is {dumped(_CONFIG_PATH) or 'unset'}"
    if expected.sandbox_image is not None and dumped(_SANDBOX) != expected.sandbox_image:
        yield f"the pause image should be {expected.sandbox_image} and is {dumped(_SANDBOX) or 'unset'}"
