"""containerd's config.toml: what is merged in, what comes back, what is refused."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeadm_registry.containerd import settings as containerd
from kubeadm_registry.containerd.backup import digest
from kubeadm_registry.containerd.edit import Unparsable, lines_of, parse
from kubeadm_registry.containerd.record import Record
from kubeadm_registry.containerd.settings import (
    CERTS_D,
    CONFIG,
    DEFAULT_PATHS,
    InForce,
    Layer,
    Merged,
    Refused,
    Version,
    contradictions,
    pauses,
    plan,
)
from kubeadm_registry.containerd.unmerge import unmerge
from tests.unit import containerd_dump

GOLDEN = Path(__file__).parent.parent / "golden" / "containerd"
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
PAUSE = "registry.k8s.io/pause:3.10.2"
V17 = Version(1, 7)
V21 = Version(2, 1)
V22 = Version(2, 2)
CRI = 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\n'


def merge(text: str, *, containerd: Version, config_path: str = CERTS_D, sandbox_image: str | None = None) -> Merged:
    """The plan for a configuration that is one file of content *text*."""
    layer = Layer.read(CONFIG, text.encode())
    return plan([layer], containerd=containerd, config_path=config_path, sandbox_image=sandbox_image)


def version_of(case: str) -> Version:
    found = Version.parse(case.rpartition("-")[2])
    assert found is not None
    return found


def test_pause_images_of_ours_are_known_also_where_a_run_died_before_it_wrote_the_file() -> None:
    original = 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "registry.k8s.io/pause:3.8"\n'
    text, record = original, Record()
    for number in range(3):
        ours = pauses(item for one in record.files.values() for item in one.undoable)
        layer, wanted = Layer.read(CONFIG, text.encode()), f"registry.k8s.io/pause:4.{number}"
        merged = plan([layer], containerd=V17, config_path=CERTS_D, sandbox_image=wanted, ours=ours)
        new = merged.texts[CONFIG]
        assert wanted in new and not merged.notices
        record = record.with_file(
            CONFIG, merged.edits, original=digest(original.encode()), before=digest(text.encode()),
            after=digest(new.encode()),
        )  # fmt: skip
        record = Record.parse(record.render())
        assert unmerge(text, record.files[CONFIG].undoable) == original
        if number != 1:  # that one died
            text = new
    assert unmerge(text, record.files[CONFIG].undoable) == original


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    text = (GOLDEN / case / "original.toml").read_bytes().decode()
    merged = merge(text, containerd=version_of(case), sandbox_image=PAUSE)
    new = merged.texts.get(containerd.CONFIG, text)
    golden = GOLDEN / case / "merged.toml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_bytes(new.encode())
    assert new == golden.read_bytes().decode()
    assert not merge(new, containerd=version_of(case), sandbox_image=PAUSE).edits
    restored = unmerge(new, merged.edits)
    assert tomllib.loads(restored) == tomllib.loads(text)
    assert restored.rstrip("\n") == text.rstrip("\n")


def survives(text: str, new: str, changed: int) -> bool:
    """Whether all but *changed* lines of *text* are in *new*, in their order."""
    remaining = iter(lines_of(new))
    lost = 0
    for line in lines_of(text):
        bare = line.rstrip("\r\n")
        rest = list(remaining)
        at = next((index for index, other in enumerate(rest) if other.rstrip("\r\n") == bare), None)
        remaining = iter(rest if at is None else rest[at + 1 :])
        lost += at is None
    return lost <= changed


comment = st.sampled_from(["", " # why", '  # [plugins] = "x"', "\t#"])
blank = st.sampled_from(["", "\n", "# a comment\n", "   \n", "  # plugins.x = '''\n"])
indent = st.sampled_from(["", "  ", "\t", "      "])
plugin = st.sampled_from(
    ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.gc.v1.scheduler"]
)
value = st.sampled_from(
    [
        '"x"',
        "'y'",
        "1",
        "true",
        '["a", "b"]',
        '[\n  "a", # one\n  "b",\n]',
        '"""\n[plugins]\nx = 1\n"""',
        "{ a = 1 }",
        '""',
    ]
)
pause = st.sampled_from(["", 'sandbox_image = "registry.k8s.io/pause:3.8"', 'sandbox_image = "own/pause:1" # ours'])
path = st.sampled_from(["", 'config_path = ""', 'config_path = "/etc/hosts.d"', "headers.X = ['a']"])


@st.composite
def configs(draw: st.DrawFn) -> str:
    """A file of version 2 as people write them, with or without CRI tables, in any order, in any layout."""
    cri = '"io.containerd.grpc.v1.cri"'
    sections = []
    for name in draw(st.lists(plugin, unique=True, max_size=3)):
        pad = draw(indent)
        lines = [f'{pad}[plugins."{name}"]{draw(comment)}\n'] if draw(st.booleans()) else []
        if lines:
            lines += [f"{pad}  key{n} = {draw(value)}{draw(comment)}\n" for n in range(draw(st.integers(0, 2)))]
            if name == "io.containerd.grpc.v1.cri" and (line := draw(pause)):
                lines.append(f"{pad}  {line}\n")
        if draw(st.booleans()):
            lines.append(f'{pad}  [plugins."{name}".cni]\n{pad}    bin_dir = {draw(value)}\n')
        if name == "io.containerd.grpc.v1.cri" and draw(st.booleans()):
            lines.append(f"{pad}[plugins.{cri}.registry]{draw(comment)}\n")
            lines.append((line := draw(path)) and f"{pad}  {line}\n")
        sections.append("".join(draw(blank) + line for line in lines))
    head = draw(blank) + "version = 2" + draw(comment) + "\n" + draw(blank)
    text = head + draw(st.sampled_from(["", "[plugins]\n"])) + "".join(draw(st.permutations(sections))) + draw(blank)
    text = text if draw(st.booleans()) else text.rstrip("\n")
    return text.replace("\n", "\r\n") if draw(st.booleans()) else text


@given(configs(), st.sampled_from([V17, V21]))
@settings(max_examples=200, deadline=None)
def test_merge_adds_and_nothing_else(text: str, version: Version) -> None:
    merged = merge(text, containerd=version, sandbox_image=PAUSE)
    new = merged.texts.get(containerd.CONFIG, text)
    assert not merge(new, containerd=version, sandbox_image=PAUSE).edits, "a second merge finds nothing to do"
    assert survives(text, new, changed=len([item for item in merged.edits if item.old is not None]))
    assert unmerge(new, merged.edits).rstrip("\r\n") == text.rstrip("\r\n")
    values = tomllib.loads(new)["plugins"]["io.containerd.grpc.v1.cri"]
    assert values["registry"]["config_path"] == merged.wanted.config_path
    assert values["sandbox_image"] in (PAUSE, "own/pause:1")
    assert ("\n" in text.replace("\r\n", "")) == ("\n" in new.replace("\r\n", "")) or "\n" not in text


@given(st.text(alphabet=st.sampled_from("[]\"'.=#\n\r\t ab1{},")))
@settings(max_examples=300, deadline=None)
def test_any_text_is_merged_or_refused(text: str) -> None:
    try:
        merged = merge(text, containerd=V17, sandbox_image=PAUSE)
    except Refused as error:
        assert error.hint
        return
    new = merged.texts[containerd.CONFIG]
    assert not merge(new, containerd=V17, sandbox_image=PAUSE).edits


@pytest.mark.parametrize(
    "text",
    [
        "disabled_plugins = 1\n",
        "disabled_plugins = [[]]\n",
        "version = 'x'\nimports = 3\n",
        CRI + "config_path = 1\n",
        CRI + "mirrors = 1\nconfigs = 2\n",
        CRI + "mirrors = {x = 1, y = {endpoint = 2}}\n",
        'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = []\nregistry = 1\n',
        "version = 2\nplugins = 1\n",
    ],
)
def test_values_of_the_wrong_kind_do_no_harm(text: str) -> None:
    try:
        merge(text, containerd=V17, sandbox_image=PAUSE)
    except Refused as error:
        assert error.hint


@pytest.mark.parametrize(
    ("text", "version", "says", "hint"),
    [
        ('disabled_plugins = ["cri"]\n', V17, "disabled_plugins", "restart containerd"),
        ('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n', V17, "disabled_plugins", "remove"),
        ('version = 3\ndisabled_plugins = ["io.containerd.cri.v1.images"]\n', V21, "disabled_plugins", "remove"),
        ("version = 3\n", V17, "version = 3", "version = 2"),
        ('version = 2\n[plugins]\na = "', V17, "config.toml: line 3", "fix"),
        (CRI + '[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]\nendpoint = ["https://m:5"]\n', V17,
         "registry.mirrors", '/etc/containerd/certs.d/docker.io/hosts.toml with [host."https://m:5"]'),
        (CRI + '[plugins."io.containerd.grpc.v1.cri".registry.mirrors."*"]\nendpoint = ["https://m:5"]\n', V22,
         "registry.mirrors", "_default/hosts.toml"),
        (CRI + '[plugins."io.containerd.grpc.v1.cri".registry.configs."q.io".tls]\nca_file = "/x"\n', V17,
         'registry.configs."q.io".tls', "q.io/hosts.toml"),
    ],
)  # fmt: skip
def test_refused(text: str, version: Version, says: str, hint: str) -> None:
    with pytest.raises(Refused) as caught:
        merge(text, containerd=version)
    assert says in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.code == "ContainerdConfig"


def test_not_utf8_is_refused_with_its_line() -> None:
    with pytest.raises(Refused, match=r"/c\.toml: line 2: not UTF-8"):
        containerd.Layer.read("/c.toml", b"version = 2\n# gr\xfc\xdfe\n")


def test_logins_of_the_old_form_may_stay() -> None:
    text = CRI + '[plugins."io.containerd.grpc.v1.cri".registry.configs."q.io".auth]\nusername = "a"\n'
    assert merge(text, containerd=V17).edits


def test_a_pause_image_of_the_users_stays_and_is_reported() -> None:
    text = 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "own/pause:1"\n'
    merged = merge(text, containerd=V17, sandbox_image=PAUSE)
    assert [item.key for item in merged.edits] == ["config_path"]
    assert "own/pause:1" in merged.notices[0]
    assert PAUSE in merged.notices[0]


IMAGES = '[plugins."io.containerd.cri.v1.images"'


@pytest.mark.parametrize("path", ["", "config_path = ''\n", f'config_path = "{DEFAULT_PATHS}"\n'])
@pytest.mark.parametrize("version", [V21, V22, Version(2, 4)])
def test_where_the_transfer_service_pulls_the_path_is_one_directory(path: str, version: Version) -> None:
    """It takes containerd's own list, which is the default from 2.2 on, for the name of one: no mirror is used."""
    text = f"version = 3\n{IMAGES}.registry]\n{path}"
    merged = merge(text, containerd=version)
    assert tomllib.loads(merged.texts[CONFIG])["plugins"]["io.containerd.cri.v1.images"]["registry"] == {
        "config_path": CERTS_D
    }
    assert merged.wanted.config_path == CERTS_D
    assert tomllib.loads(unmerge(merged.texts[CONFIG], merged.edits)) == tomllib.loads(text)


@pytest.mark.parametrize(
    "setting",
    [
        "use_local_image_pull = true", "discard_unpacked_layers = true", "disable_snapshot_annotations = false",
        "max_concurrent_downloads = 10", "image_pull_with_sync_fs = true", 'registry.auths."q.io".username = "a"',
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["", f'registry.config_path = "{DEFAULT_PATHS}"\n'])
def test_where_containerd_pulls_by_itself_its_list_is_enough(path: str, setting: str) -> None:
    """What is in /etc/docker/certs.d counts there, and goes on to."""
    merged = merge(f"version = 3\n{IMAGES}]\n{path}{setting}\n", containerd=V22)
    assert not merged.edits
    assert merged.hosts_directory == CERTS_D


def test_a_list_of_the_users_stays_and_is_reported_where_it_has_no_effect() -> None:
    text = f'version = 3\n{IMAGES}.registry]\nconfig_path = "/etc/a:/etc/b"\n'
    merged = merge(text, containerd=V21)
    assert not merged.edits
    (said,) = merged.notices
    assert "config_path is /etc/a:/etc/b" in said
    assert "set it to /etc/a, or set use_local_image_pull" in said
    assert not merge(text, containerd=Version(2, 0)).notices, "which has no other way than its own"


@pytest.mark.parametrize("shown", ["", DEFAULT_PATHS])
def test_the_default_path_is_no_contradiction_however_it_is_dumped(shown: str) -> None:
    """2.2.0 and 2.2.1 show their default, later ones do not."""
    dump = f"{IMAGES}.registry]\nconfig_path = '{shown}'\n"
    assert not list(contradictions(InForce("", None), dump, V22))
    assert list(contradictions(InForce(CERTS_D, None), dump, V22))


def test_hosts_files_go_to_the_first_directory() -> None:
    text = CRI + 'config_path = "/etc/a/:/etc/b"\n'
    assert merge(text, containerd=V17).hosts_directory == "/etc/a"


@pytest.mark.parametrize(
    ("path", "directory"),
    [("certs.d", "/certs.d"), ("./etc/certs.d/:/etc/b", "/etc/certs.d"), (":/etc/b", "/etc/b"), ("/etc/a/", "/etc/a"),
     (":", CERTS_D)],
)  # fmt: skip
def test_hosts_files_go_where_containerd_finds_them(path: str, directory: str) -> None:
    """It starts in /, and we log in elsewhere."""
    text = f'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "{path}"\n'
    assert merge(text, containerd=V17).hosts_directory == directory


def layer(path: str, text: str) -> containerd.Layer:
    return containerd.Layer.read(path, text.encode())


IMPORTED = '[plugins."io.containerd.grpc.v1.cri".cni]\nbin_dir = "/x"\n'


def test_in_1_x_the_last_file_with_the_table_is_edited() -> None:
    layers = [layer("/main", CRI + 'config_path = "/etc/a"\n'), layer("/imported", "version = 2\n" + IMPORTED)]
    merged = containerd.plan(layers, containerd=V17, config_path=CERTS_D, sandbox_image=None)
    assert list(merged.texts) == ["/imported"], "its table replaces the one that sets config_path"
    assert merged.wanted.config_path == CERTS_D


def test_in_2_x_tables_are_merged_so_that_the_path_of_the_other_file_counts() -> None:
    layers = [layer("/main", CRI + 'config_path = "/etc/a"\n'), layer("/imported", "version = 2\n" + IMPORTED)]
    merged = containerd.plan(layers, containerd=V21, config_path=CERTS_D, sandbox_image=None)
    assert not merged.edits
    assert merged.hosts_directory == "/etc/a"


NVIDIA = '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]\nruntime_type = "io.containerd.runc.v2"\n'


@pytest.mark.parametrize("version", [Version(2, 0), V21, Version(2, 3)])
@pytest.mark.parametrize("main", [2, 3])
@pytest.mark.parametrize("other", [2, 3])
def test_in_2_x_a_drop_in_that_others_write_anew_is_left_alone(
    tmp_path: Path, version: Version, main: int, other: int
) -> None:
    """NVIDIA's toolkit replaces its own each time it is configured, and the mirrors would be gone without a word."""
    texts = {
        "config.toml": f'version = {main}\nimports = ["nvidia.toml"]\n',
        "nvidia.toml": f"version = {other}\n{NVIDIA}",
    }
    files = {name: str(tmp_path / name) for name in texts}
    merged = containerd.plan(
        [layer(files[name], text) for name, text in texts.items()],
        containerd=version, config_path=CERTS_D, sandbox_image=PAUSE,
    )  # fmt: skip
    assert list(merged.texts) == [files["config.toml"]]
    for name, text in texts.items():
        (tmp_path / name).write_text(merged.texts.get(files[name], text))
    shown = containerd_dump.dump(files["config.toml"], (version.major, version.minor), str(tmp_path))
    assert list(containerd.contradictions(merged.wanted, shown, version)) == []


def test_in_1_x_the_version_of_an_imported_file_counts_for_all() -> None:
    layers = [layer("/main", 'imports = ["/imported"]\n'), layer("/imported", "version = 2\n")]
    merged = containerd.plan(layers, containerd=V17, config_path=CERTS_D, sandbox_image=None)
    assert "io.containerd.grpc.v1.cri" in merged.texts["/main"]
    assert "version = 2" not in merged.texts["/main"]


def test_undo_leaves_a_value_that_was_changed_since() -> None:
    merged = merge("version = 2\n", containerd=V17, sandbox_image=PAUSE)
    edited = merged.texts[containerd.CONFIG].replace(PAUSE, "own/pause:1") + "# mine\n"
    rest = unmerge(edited, merged.edits)
    assert "own/pause:1" in rest
    assert "# mine" in rest
    assert "config_path" not in rest
    assert tomllib.loads(rest)["plugins"] == {"io.containerd.grpc.v1.cri": {"sandbox_image": "own/pause:1"}}


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", (1, 6)),
        ("containerd containerd.io 1.7.27 05044ec0a9a75232cad458027ca83437aae3f4da", (1, 7)),
        ("containerd github.com/containerd/containerd/v2 v2.4.2 abc", (2, 4)),
    ],
)
def test_version(output: str, version: tuple[int, int]) -> None:
    found = Version.parse(output)
    assert found is not None
    assert (found.major, found.minor) == version
    assert Version.parse("containerd unknown") is None


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 20000], ids=["a long number", "deep"])
def test_what_no_parser_reads_is_unparsable(value: str) -> None:
    with pytest.raises(Unparsable):
        parse(f"version = 2\noom_score = {value}\n")
