"""The tables of services: a part that is added needs nothing else, and what is wired to what stands in golden files.

`pytest tests/unit/test_services.py --update-golden` writes tests/golden/wiring anew; then read the diff.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest

from kubeadm_registry import config, paths, status
from kubeadm_registry.access import session
from kubeadm_registry.agent import config as agent_config
from kubeadm_registry.components import runbook, services
from kubeadm_registry.components.network import guarded
from kubeadm_registry.components.units import Service
from kubeadm_registry.config import model
from kubeadm_registry.engine import render
from kubeadm_registry.engine.changes import STARTED, Change, File, Running
from kubeadm_registry.engine.phase import leaves
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import PreflightFailed
from kubeadm_registry.phases import immutable
from kubeadm_registry.phases.workflows import INIT, RESET
from kubeadm_registry.support import collection
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.fakes import UNITS
from tests.unit.test_workflow import Recorder
from tests.unit.toy import backend as toy
from tests.unit.toy import frontend as plain

GOLDEN = Path(__file__).parents[1] / "golden" / "wiring"
TOY = Path(__file__).parent / "toy" / "templates"


def test_what_a_file_may_name_and_the_tables_are_the_same() -> None:
    for kind, table in ((model.Backend, services.BACKENDS), (model.Frontend, services.FRONTENDS)):
        assert typing.get_args(kind.model_fields["type"].annotation) == tuple(table)
    for table in (services.BACKENDS, services.FRONTENDS, services.VIP_MANAGERS):
        assert all(part.SERVICE.name == name for name, part in table.items())


def test_every_service_has_its_templates(root: Path) -> None:
    for service in services.every_service():
        assert (root / "kubeadm_registry/templates" / service.name / "unit.j2").is_file()
    for table in (services.BACKENDS, services.FRONTENDS):
        assert all((root / "kubeadm_registry/templates" / name / "runbook.j2").is_file() for name in table)


@pytest.mark.parametrize(
    ("kind", "module"), [(services.Backend, toy), (services.Frontend, plain)], ids=["backend", "frontend"]
)
def test_the_smallest_part_has_every_name_that_its_kind_lists(kind: type, module: object) -> None:
    """They stand as examples of all that a part needs, and no type checker reads them."""
    names = {*vars(kind), *kind.__annotations__}
    assert not [name for name in sorted(names) if not name.startswith("_") and not hasattr(module, name)]


# ---- a part that is added ----------------------------------------------------------------------------------------


@pytest.fixture
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend and a frontend more: each a module, a directory of templates, and its line here in the table."""
    monkeypatch.setitem(services.BACKENDS, "toy", toy)
    monkeypatch.setitem(services.FRONTENDS, "plain", plain)
    templates = render._environment()
    assert templates.loader is not None
    both = jinja2.ChoiceLoader([templates.loader, jinja2.FileSystemLoader(TOY)])
    monkeypatch.setattr(templates, "loader", both)


@pytest.fixture
def cluster(_toys: None) -> FakeCluster:
    """Three bare servers whose storage is the toy."""
    return FakeCluster.of(config.SMALLEST, backend="toy")


@pytest.fixture
def installed(cluster: FakeCluster) -> FakeCluster:
    """The same after init."""
    run(INIT, cluster.cluster, Recorder(), skip=ELSEWHERE)
    return cluster


def test_a_further_backend_is_installed(installed: FakeCluster) -> None:
    assert session.wanted(installed.config) == ("toy", "zot", "haproxy", "keepalived", "python", "kubeadm-registry")
    for server in installed.servers.values():
        assert server.unit(toy.SERVICE.unit).active == "active"
        assert toy.SERVICE.user in server.users
        assert not [name for name in server.units if "garage" in name]
        # Who stands before it follows it: frontend, firewall, agent, RUNBOOK.
        zot = server.content("/etc/kubeadm-registry/zot/standby.json").decode()
        assert '"region": "toyland"' in zot
        unit = server.content(f"{UNITS}/kubeadm-registry-zot.service").decode()
        assert f"After={toy.SERVICE.unit}" in unit
        rules = server.content(paths.GUARD).decode()
        assert "dport 3900 meta skuid != { root, kubeadm-registry-zot } reject" in rules
        assert "3903" not in rules, "it has no admin port"
        agent = server.content("/etc/kubeadm-registry/agent/agent.json").decode()
        assert '"storage": null' in agent
        assert "garage" not in agent
        page = server.content(runbook.PATH).decode()
        assert f"systemctl start {toy.SERVICE.unit}" in page
        assert "--status /etc/kubeadm-registry/toy/toy.conf" in page
        assert "arage" not in page
    assert run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE) == []


def test_a_further_backend_restarts_when_its_file_changes(installed: FakeCluster) -> None:
    server = installed.servers["cp-2"]
    starts = server.unit(toy.SERVICE.unit).starts
    server.put(toy.CONFIG, server.content(toy.CONFIG).replace(b" ", b"  "))
    server.put(f"{STARTED}/{toy.SERVICE.unit}", "")
    actions = run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE)
    assert [action.title for action in actions] == [f"write {toy.CONFIG}", f"start {toy.SERVICE.unit}"]
    assert server.unit(toy.SERVICE.unit).starts == starts + 1


def test_a_further_backend_is_in_the_status(installed: FakeCluster) -> None:
    def seen() -> dict[str, typing.Any]:
        hosts = installed.cluster_hosts()
        return status.judge(installed.config, status.gather(installed.config, hosts, {}), 1000.0)

    well = seen()
    assert [node["services"]["toy"] for node in well["nodes"]] == ["active"] * 3
    assert status.condition(well, "CanLoseANode") == "True"
    installed.servers["cp-3"].unit(toy.SERVICE.unit).active = "failed"
    ill = seen()
    assert next(one for one in ill["conditions"] if one["type"] == "CanLoseANode")["message"] == "toy on cp-3 is failed"


def test_a_further_backend_is_in_a_support_archive(installed: FakeCluster) -> None:
    of = services.services(installed.config.spec)
    own = collection.items(of)[-1]
    assert (own.name, own.script) == ("toy.txt", f"toy --status {toy.CONFIG}")
    asked = " ".join(item.script for item in collection.items(of))
    assert "garage" not in asked
    assert "nodes/NAME/toy.txt" in collection.contents(of)


def test_a_further_backend_is_removed_and_its_images_stay_until_they_are_purged(installed: FakeCluster) -> None:
    run(RESET, installed.cluster, Recorder(), skip=("containerd", "data"))
    for server in installed.servers.values():
        assert server.users == {"root": {"root"}}
        assert {unit.active for unit in server.units.values()} == {"inactive"}
        left = {path for path in server.files() if "kubeadm-registry" in path}
        assert "/var/lib/kubeadm-registry/secrets.json" in left
        assert all(path.startswith("/var/lib/kubeadm-registry/") for path in left)
    assert "/var/lib/kubeadm-registry/toy/blobs/bucket" in installed.servers["cp-1"].files()
    run(RESET, installed.cluster, Recorder(), skip=("containerd",))
    assert not any("kubeadm-registry" in path for server in installed.servers.values() for path in server.files())


def test_images_of_a_further_backend_are_not_lost_to_new_secrets(cluster: FakeCluster) -> None:
    cluster.servers["cp-2"].put("/var/lib/kubeadm-registry/toy/blobs/bucket", b"x")
    cluster.fixed = None
    with pytest.raises(PreflightFailed):
        run(INIT, cluster.cluster, Recorder(), skip=ELSEWHERE)


def test_one_backend_cannot_follow_another(installed: FakeCluster) -> None:
    spec = installed.config.spec
    other = spec.model_copy(update={"backend": model.Backend()})
    installed.config = installed.config.model_copy(update={"spec": other})
    found = list(immutable.same_cluster(installed.cluster, installed.cluster.leader))
    assert any(one.startswith("spec.backend.type is toy and cannot be changed to garage in place; ") for one in found)


def test_a_further_frontend_is_installed_and_removed(_toys: None) -> None:
    fake = FakeCluster.of(config.SMALLEST, frontend="plain")
    run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
    assert run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE) == []
    for server in fake.servers.values():
        assert server.unit(plain.SERVICE.unit).active == "active"
        assert not server.unit("kubeadm-registry-zot.service").starts
        rules = server.content(paths.GUARD).decode()
        assert "dport 3900 meta skuid != { root, kubeadm-registry-plain } reject" in rules
        read = agent_config.parse(json.loads(server.content("/etc/kubeadm-registry/agent/agent.json")))
        assert (read.frontend.type, read.frontend.unit, read.writer) == ("plain", plain.SERVICE.unit, "any")
        assert "There a blob is REPOSITORY/DIGEST." in server.content(runbook.PATH).decode()
    run(RESET, fake.cluster, Recorder(), skip=("containerd",))
    assert not any("kubeadm-registry" in path for server in fake.servers.values() for path in server.files())


# ---- what is wired to what ----------------------------------------------------------------------------------------


def changes(fake: FakeCluster) -> Iterator[Change]:
    """Everything that init sees to on the first server."""
    cluster = fake.cluster
    for path, phase in leaves(INIT):
        if path.split("/")[0] not in ELSEWHERE:
            yield from phase.changes(cluster, cluster.leader)


def dependencies(unit: str) -> Iterator[str]:
    """The lines of a unit file that tie it to other units."""
    keys = ("After", "Wants", "Requires", "PartOf", "ReloadPropagatedFrom", "WantedBy", "Slice", "ExecStopPost")
    for line in unit.splitlines():
        if line.partition("=")[0] in keys:
            yield line


def described(service: Service, running: list[Running], text: str, callers: dict[int, list[str]]) -> Iterator[str]:
    yield f"service {service.name}"
    yield f"  runs {service.program or 'no program of the bundle'} as {service.user or 'root'}"
    for port in service.ports:
        whom = f"on loopback, for {', '.join(callers[port.number]) or 'root'}" if port.local else "for other hosts"
        yield f"  listens on {port.number}/{port.protocol}, {whom}"
    for line in dependencies(text):
        yield f"  {line}"
    for one in running:
        gate = "at any time" if one.gate is None else f"when {one.gate.__module__.rpartition('.')[2]} is well"
        yield f"  {one.unit} restarts {gate}"
        for file in one.files:
            yield f"    {'reload ' if file.path in one.reloads else 'restart'} {file.path}"


def wiring(frontend: str) -> str:
    """Each service with its ports, its dependencies, and what a change of each file does; then all other files."""
    fake = FakeCluster.of(f"{config.SMALLEST}  frontend: {{type: {frontend}}}\n")
    run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
    found = list(changes(fake))
    running = [one for one in found if isinstance(one, Running)]
    spec, server = fake.config.spec, fake.servers[fake.cluster.leader.name]
    callers = dict(guarded(services.services(spec)))
    lines = []
    for service in services.every_service():
        own = [one for one in running if one.unit in service.units]
        if own:
            lines += described(service, own, server.content(own[0].files[-1].path).decode(), callers)
    watched = {file.path for one in running for file in one.files}
    lines.append("nothing restarts for")
    lines += sorted(f"  {one.path}" for one in found if isinstance(one, File) and one.path not in watched)
    lines.append("phases")
    for path, phase in leaves(INIT):
        if phase.steps is not None:
            turns = [", one at a time"] * phase.one_at_a_time + [", but at first"] * phase.first_at_once
            lines.append(f"  {path} on {phase.on.__name__}{''.join(turns)}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("frontend", services.FRONTENDS)
def test_wiring_is_as_in_the_golden_file(frontend: str, request: pytest.FixtureRequest) -> None:
    made, path = wiring(frontend), GOLDEN / f"{frontend}.txt"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(made)
    assert made == path.read_text(), f"if it is meant so: pytest {__file__} --update-golden"


def test_a_service_that_watches_a_file_is_given_it() -> None:
    """Each path that a value names is written by some frontend; else it would watch nothing, and nobody would know."""
    written = set()
    for frontend in services.FRONTENDS:
        fake = FakeCluster.of(f"{config.SMALLEST}  frontend: {{type: {frontend}}}\n")
        run(INIT, fake.cluster, Recorder(), skip=ELSEWHERE)
        written |= {file.path for one in changes(fake) if isinstance(one, Running) for file in one.files}
    named = {path for one in services.every_service() for path in (*one.restarted_by, *one.reloaded_by)}
    assert named <= written
