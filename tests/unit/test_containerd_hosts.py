"""hosts.toml and the proxy variables: text in, text out."""

from __future__ import annotations

import tomllib

import pytest

from kubeadm_registry.containerd import edit, hosts, http_proxy
from kubeadm_registry.containerd.settings import Version

V17 = Version(1, 7)
CA = "/etc/containerd/certs.d/kubeadm-registry-ca.crt"


def body(text: str) -> str:
    """The file without the two comments at its head."""
    return text.split("\n", 2)[2]


def rendered(
    vip: tuple[str, ...], registry: str, *, name: str = "", version: Version = V17, authorization: str = ""
) -> str:
    found = {mirror.registry: mirror for mirror in hosts.mirrors(vip, name, 5000, ["registry.k8s.io", "own.lan:8443"])}
    return hosts.render(found[registry], ca=CA, containerd=version, authorization=authorization)


def test_an_upstream_has_its_name_in_the_path() -> None:
    assert (
        body(rendered(("10.0.0.10",), "registry.k8s.io"))
        == f"""\
server = "https://10.0.0.10:5000/v2/registry.k8s.io"
override_path = true
ca = "{CA}"
capabilities = ["pull", "resolve"]

[host."https://10.0.0.10:5000/v2/registry.k8s.io"]
  override_path = true
  ca = "{CA}"
  capabilities = ["pull", "resolve"]
"""
    )


def test_every_registry_is_asked_for_below_one_path_and_named_in_the_query() -> None:
    """By containerd, which adds ``?ns=``; the proxy reads it."""
    one, *_ = hosts.mirrors(("10.0.0.10", "fd00::10"), "", 5000, ["*", "docker.io"])
    assert one.registry == "_default"
    assert one.override_path
    assert one.urls == ("https://10.0.0.10:5000/v2/_upstream", "https://[fd00::10]:5000/v2/_upstream")
    assert hosts.directories(one.registry) == ("_default",)


def test_the_registry_itself_has_no_prefix() -> None:
    assert (
        body(rendered(("10.0.0.10",), "10.0.0.10:5000", version=Version(2, 1)))
        == f"""\
server = "https://10.0.0.10:5000"
ca = "{CA}"
capabilities = ["pull", "resolve"]
dial_timeout = "3s"

[host."https://10.0.0.10:5000"]
  ca = "{CA}"
  capabilities = ["pull", "resolve"]
  dial_timeout = "3s"
"""
    )


def test_dual_stack_tries_the_first_address_first() -> None:
    values = tomllib.loads(rendered(("fd00::10", "10.0.0.10"), "registry.k8s.io"))
    assert list(values["host"]) == [
        "https://[fd00::10]:5000/v2/registry.k8s.io",
        "https://10.0.0.10:5000/v2/registry.k8s.io",
    ]
    assert values["server"] == "https://[fd00::10]:5000/v2/registry.k8s.io"


def test_1_x_reads_no_closing_bracket_in_a_header() -> None:
    old = rendered(("fd00::10", "10.0.0.10"), "registry.k8s.io")
    new = rendered(("fd00::10", "10.0.0.10"), "registry.k8s.io", version=Version(2, 0))
    assert tomllib.loads(old) == tomllib.loads(new)
    assert [line for line in old.splitlines() if line.startswith("[")] == ["[host]"]
    assert '[host."https://[fd00::10]:5000/v2/registry.k8s.io"]' in new
    assert hosts.without_ours(old.encode() + b"# mine\n") == b"# mine\n"
    assert hosts.without_ours(old.encode() + b'"https://mine".capabilities = ["pull"]\n') == (
        b'[host]\n"https://mine".capabilities = ["pull"]\n'
    )


def test_every_way_to_name_the_registry_has_a_file() -> None:
    found = hosts.mirrors(("fd00::10", "10.0.0.10"), "registry.lan", 5000, ["quay.io"])
    assert [mirror.registry for mirror in found] == [
        "quay.io",
        "[fd00::10]:5000",
        "10.0.0.10:5000",
        "registry.lan:5000",
    ]


def test_a_colon_is_no_part_of_a_repository() -> None:
    assert 'server = "https://10.0.0.10:5000/v2/own.lan_8443"' in rendered(("10.0.0.10",), "own.lan:8443")


@pytest.mark.parametrize(
    ("registry", "directories"),
    [
        ("registry.k8s.io", ("registry.k8s.io",)),
        ("10.0.0.10:5000", ("10.0.0.10_5000_", "10.0.0.10:5000")),
        ("[fd00::10]:5000", ("[fd00::10]_5000_", "[fd00::10]:5000")),
        ("[fd00::10]", ("[fd00::10]",)),
    ],
)
def test_directories(registry: str, directories: tuple[str, ...]) -> None:
    assert hosts.directories(registry) == directories


def test_an_edit_shows() -> None:
    content = rendered(("10.0.0.10",), "registry.k8s.io").encode()
    assert hosts.is_ours(content)
    assert hosts.is_unmodified(content)
    edited = content + b"# mine\n"
    assert hosts.is_ours(edited)
    assert not hosts.is_unmodified(edited)
    assert not hosts.is_ours(b'server = "https://mine"\n')


def test_of_an_edited_file_the_edit_stays() -> None:
    mine = (
        '[host."https://mine.lan"]\n  ca = "/etc/mine.crt" # own\n\n  [host."https://mine.lan".header]\n    X = "1"\n'
    )
    text = rendered(("10.0.0.10",), "registry.k8s.io")
    assert hosts.without_ours((text + "\n# my mirror\n" + mine).encode()) == f"# my mirror\n{mine}".encode()


def test_a_server_that_was_changed_stays() -> None:
    text = rendered(("10.0.0.10",), "registry.k8s.io")
    edited = text.replace('server = "https://10.0.0.10:5000/v2/registry.k8s.io"', 'server = "https://registry.k8s.io"')
    assert hosts.without_ours(edited.encode()) == b'server = "https://registry.k8s.io"\n'


def test_of_an_edit_of_our_own_lines_nothing_stays() -> None:
    text = rendered(("10.0.0.10",), "registry.k8s.io")
    assert hosts.without_ours(text.replace('"pull", "resolve"', '"pull"').encode()) is None


@pytest.mark.parametrize("ca", ['ca = "/etc/mine.crt"', "skip_verify = true"])
@pytest.mark.parametrize("count", [1, -1], ids=["of the server", "all"])
def test_nothing_of_ours_stays_where_another_ca_took_the_place_of_it(ca: str, count: int) -> None:
    """What stays of the root keys would go for the upstream: the login, and that its certificate is not checked."""
    text = rendered(("10.0.0.10",), "registry.k8s.io", authorization="Basic x")
    edited = text.replace(f'ca = "{CA}"', ca, count)
    assert edited != text
    assert hosts.without_ours(edited.encode()) is None
    mine = '[host."https://mine.lan"]\n'
    assert hosts.without_ours((edited + "\n" + mine).encode()) == mine.encode()


def test_a_file_whose_line_ends_were_changed_goes_as_well() -> None:
    text = rendered(("10.0.0.10",), "registry.k8s.io").replace("\n", "\r\n")
    assert hosts.without_ours(text.encode()) is None


def test_a_file_that_is_no_toml_stays() -> None:
    content = rendered(("10.0.0.10",), "registry.k8s.io").encode() + b"oops"
    assert hosts.without_ours(content) == content


@pytest.mark.parametrize(
    ("no_proxy", "host", "covered"),
    [
        ("", "10.0.0.10", False),
        ("*", "10.0.0.10", True),
        ("localhost, 10.0.0.0/8", "10.0.0.10", True),
        ("10.0.0.1", "10.0.0.10", False),
        ("10.0.0.10", "10.0.0.10", True),
        ("fd00::/8", "fd00::10", True),
        ("fd00::10", "fd00::10", True),
        (".lan", "registry.lan", True),
        ("lan", "registry.lan", True),
        ("an", "registry.lan", False),
        ("*.lan", "registry.lan", True),
    ],
)
def test_no_proxy(no_proxy: str, host: str, covered: bool) -> None:
    assert http_proxy.is_covered(no_proxy, host) is covered


def test_without_a_proxy_there_is_no_file() -> None:
    assert http_proxy.environment_file({"NO_PROXY": "x"}, ["10.0.0.10"]) is None


def test_the_users_exceptions_stay() -> None:
    environment = {"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "localhost,10.1.0.0/16", "no_proxy": "ignored"}
    assert http_proxy.environment_file(environment, ["10.0.0.10", "10.1.0.1", "10.0.0.10"]) == (
        "NO_PROXY=localhost,10.1.0.0/16,10.0.0.10\nno_proxy=localhost,10.1.0.0/16,10.0.0.10\n"
    )


def test_the_lower_case_list_counts_where_it_is_alone() -> None:
    environment = {"https_proxy": "http://p:3128", "no_proxy": "a.lan"}
    assert (
        http_proxy.environment_file(environment, ["10.0.0.10"])
        == "NO_PROXY=a.lan,10.0.0.10\nno_proxy=a.lan,10.0.0.10\n"
    )


def test_environment_files() -> None:
    text = "# c\n; c\nA=1\n B = 'two words'\nC=\"x\"\nbroken\nD=a\\\nb\n"
    assert http_proxy.parse_environment_file(text) == {"A": "1", "B": "two words", "C": "x", "D": "ab"}
    assert http_proxy.parse_show("A=1 'B=two words' C") == {"A": "1", "B": "two words"}


def test_the_environment_of_systemd_itself_is_quoted_as_in_bash() -> None:
    """So ``systemctl show-environment`` prints ``DefaultEnvironment=`` where a value has one of ``*?[()<>|&;!'``."""
    shown = "HTTPS_PROXY=http://p:3128\nNO_PROXY=$'*.lan,10.1.0.0/16'\nX_PROXY=$'it\\'s a \\\\'\n"
    found = http_proxy.parse_show(shown)
    assert found == {"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "*.lan,10.1.0.0/16", "X_PROXY": "it's a \\"}
    assert http_proxy.environment_file(found, ["10.0.0.10"]) == "NO_PROXY=*.lan,10.1.0.0/16,10.0.0.10\n"
    assert http_proxy.parse_show("""A=1 "B=two words" "C=\\"$'x'\\"" """) == {
        "A": "1",
        "B": "two words",
        "C": "\"$'x'\"",
    }


@pytest.mark.parametrize(
    "value",
    ['"Basic c2VjcmV0"', "'Basic c2VjcmV0'", '["Basic c2VjcmV0"]', '[\n  "Basic c2VjcmV0",\n]', '"""Basic c2VjcmV0"""',
     '"Basic c2VjcmV0', '"""Basic c2VjcmV0'],
)  # fmt: skip
def test_a_diff_shows_no_login_however_it_is_written(value: str) -> None:
    """Also where a file was cut off in the middle of one."""
    old = f"header = {{Authorization = {value}}}\nskip_verify = true\n".encode()
    shown = edit.difference("/etc/containerd/certs.d/a/hosts.toml", old, b"")
    assert "<login>" in shown
    assert "c2VjcmV0" not in shown
