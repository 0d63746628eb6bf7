"""Writes docs/reference.md from the program itself: ``python docs/reference.py``. A test compares the two."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from kubeadm_registry import config, errors, paths
from kubeadm_registry.cli.main import cli
from kubeadm_registry.config import explain, values
from kubeadm_registry.config.immutable import TABLE
from kubeadm_registry.engine.phase import Workflow, leaves
from kubeadm_registry.engine.report import JsonLines
from kubeadm_registry.phases import workflows
from kubeadm_registry.phases.certificates import TRUST
from kubeadm_registry.phases.retention import enable_timer

TARGET = Path(__file__).with_name("reference.md")


def text() -> str:
    """The whole page."""
    return "\n".join(
        [
            "# Reference",
            "",
            "Generated from the program by `make docs`; changes here are overwritten.",
            "",
            *_commands(),
            *_phases("init", workflows.INIT),
            *_phases("reset", workflows.RESET),
            *_checks(),
            *_configuration(),
            *_immutable(),
            *_codes(),
            *_events(),
            *_places(),
        ]
    )


def _commands() -> Iterator[str]:
    yield "## Commands"
    yield ""
    for path, command in _walk(cli, "kubeadm-registry"):
        yield f"### {path}"
        yield ""
        yield _paragraphs(command.help or "")
        yield ""
        arguments = [p.make_metavar(click.Context(command)) for p in command.params if isinstance(p, click.Argument)]
        if arguments:
            yield f"    {path} {' '.join(arguments)}"
            yield ""
        options = [p for p in command.params if isinstance(p, click.Option)]
        if options:
            yield "| option | meaning |"
            yield "| --- | --- |"
            for option in options:
                names = ", ".join(f"`{name}`" for name in option.opts)
                yield f"| {names} | {_meaning(option).replace('|', chr(92) + '|')} |"
            yield ""


def _walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group) or command.invoke_without_command:
        yield path, command
    if isinstance(command, click.Group):
        for name, child in sorted(command.commands.items()):
            yield from _walk(child, f"{path} {name}")


def _meaning(option: click.Option) -> str:
    """The help of an option, with its choices and its default."""
    words = [option.help or ""]
    if isinstance(option.type, click.Choice) and "[default" not in words[0]:
        words.append(f"One of: {', '.join(map(str, option.type.choices))}.")
    if option.show_default and option.default is not None and option.name != "output":
        words.append(f"[default: {option.default}]")
    return " ".join(words)


def _paragraphs(help_text: str) -> str:
    """Flowing text, and what stands in lines of its own (after ``\\b``, see click) as it is."""
    text, *blocks = inspect.cleandoc(help_text).split("\b\n")
    shown = [f"```text\n{block.rstrip()}\n```" for block in blocks]
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join([text.strip(), *shown]))


def _phases(name: str, workflow: Workflow) -> Iterator[str]:
    yield f"## Phases of {name}"
    yield ""
    yield "| phase | what it does | one node at a time |"
    yield "| --- | --- | --- |"
    for path, phase in leaves(workflow):
        yield f"| `{path}` | {phase.summary} | {'yes' if phase.one_at_a_time else ''} |"
    yield ""
    if first := [f"`{path}`" for path, phase in leaves(workflow) if phase.first_at_once]:
        yield f"In a first installation, {', '.join(first)} go on all nodes at once: nothing uses them yet."
        yield ""


def _checks() -> Iterator[str]:
    yield "## Preflight checks"
    yield ""
    yield "Names for `--ignore-preflight-errors`, but for those that cannot be ignored."
    yield ""
    yield "| check | passes when | can be ignored |"
    yield "| --- | --- | --- |"
    all_workflows = (
        workflows.INIT, workflows.CHANGE_MEMBERS, workflows.RESTORE, workflows.RESET, workflows.upgrade(()),
        (TRUST,), enable_timer(b""), workflows.CREDENTIALS_ROTATE,
    )  # fmt: skip
    phases = [phase for workflow in all_workflows for _, phase in leaves(workflow)]
    # As a set in order: a change of members and an upgrade each have a check NodesHealthy of their own.
    yield from dict.fromkeys(
        f"| `{check.name}` | {_sentence(inspect.getdoc(check.probe) or '')} | {'no' if check.mandatory else 'yes'} |"
        for phase in phases
        for check in phase.checks
    )
    yield ""


def _sentence(doc: str) -> str:
    return " ".join(doc.split("\n\n", maxsplit=1)[0].split())


def _events() -> Iterator[str]:
    yield "## JSON output"
    yield ""
    yield "`-o json` writes one object a line; `--log-file` appends the same to a file. Each has its `time` (RFC 3339)."
    yield ""
    for method in vars(JsonLines).values():
        told = inspect.getdoc(method) or ""
        if inspect.isfunction(method) and told.startswith("``{"):
            yield f"- {_sentence(told).replace('``', '`')}"
    yield ""


def _configuration() -> Iterator[str]:
    yield "## The cluster file"
    yield ""
    yield "Unknown keys are refused. Everything but `apiVersion`, `kind`, nodes and VIP has a default."
    yield ""
    yield "*Backend* is the storage that keeps the images, *frontend* the registry program that serves them from it: in"
    yield "the cluster file, names of phases, and JSON. HAProxy's configuration uses both words in a sense of its own."
    yield ""
    yield "| value | default | meaning |"
    yield "| --- | --- | --- |"
    yield from _fields(config.RegistryCluster, "")
    yield ""


def _immutable() -> Iterator[str]:
    yield "### What cannot be changed in place"
    yield ""
    yield "Everything else in the file may be changed at any time; `init` applies it. These stay as they"
    yield "were at the first `init`; the check `SameCluster` compares them before anything is touched."
    yield ""
    yield "| value | why it stays | to get another one |"
    yield "| --- | --- | --- |"
    for one in TABLE:
        yield f"| {one.path if ' ' in one.path else f'`{one.path}`'} | {one.why} | {one.remedy} |"
    yield ""
    yield "`spec.frontend.type` may be changed, but the images do not come along: each program has a bucket of its own,"
    yield "so `seed` again. The images of the other one stay, and return when the type is changed back."
    yield ""
    yield "### Where data may be"
    yield ""
    yield "`spec.dataDirectory` must not be, contain, or be in one of these. An existing directory keeps its"
    yield "owner and mode. The services run as users of their own, so all must be able to enter it (`o+x`), and must"
    yield "not be able to write to it. `reset` deletes no images without `--purge-data`, and nothing that `init` did"
    yield "not make."
    yield ""
    yield "| directory | which |"
    yield "| --- | --- |"
    for why, directories in values.reserved():
        yield f"| {', '.join(f'`{directory}`' for directory in directories)} | {why} |"
    yield ""


def _fields(model: type[BaseModel], above: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        path = f"{above}{field.alias or name}"
        inner = explain.model_of(field.annotation)
        many = "[]" if "tuple" in str(field.annotation) else ""
        if inner is not None:
            yield from _fields(inner, f"{path}{many}.")
            continue
        yield f"| `{path}{many}` | {_default(field)} | {' '.join((field.description or '').split())} |"


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return ""
    if isinstance(field.default, tuple):
        return ", ".join(f"`{value}`" for value in field.default)
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _codes() -> Iterator[str]:
    yield "## Exit codes"
    yield ""
    yield "| code | meaning |"
    yield "| --- | --- |"
    for code, meaning in (
        (0, "done, or nothing to do"),
        (1, "failed: host, phase, change and cause are named"),
        (2, "the file, the command line or a name in it is wrong; nothing was changed"),
        (3, "preflight found problems; nothing was changed"),
        (4, "a host cannot be reached or trusted"),
        (
            5,
            "done on all that answer, degraded; `status`: it serves, but no node may be lost, blocks of images are "
            "lost, or certificates, clocks or firewall rules are not in order; `operator status`: no replica leads",
        ),
        (130, "interrupted"),
    ):
        yield f"| {code} | {meaning} |"
    yield ""
    yield "## Error codes"
    yield ""
    yield "| code | when |"
    yield "| --- | --- |"
    kinds = {kind.code: _sentence(inspect.getdoc(kind) or "") for kind in vars(errors).values() if _is_error(kind)}
    for code, meaning in sorted(kinds.items()):
        yield f"| `{code}` | {meaning} |"
    yield ""
    yield "Errors carry more specific codes as well, such as `HostKeyUnknown` or `ProgramMissing`."
    yield ""


def _is_error(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, errors.Error)


def _places() -> Iterator[str]:
    yield "## Paths and ports on a node"
    yield ""
    yield "| what | where |"
    yield "| --- | --- |"
    for what, where in (
        ("configuration, certificates, secrets", paths.ETC),
        ("programs", paths.PROGRAMS),
        ("run-time state", paths.RUN),
        ("state of retention", paths.RETENTION_STATE),
        ("when images were pulled", paths.PULLS_STATE),
        ("layers and metadata", "spec.dataDirectory"),
        ("units", f"{paths.PREFIX}-*.service and {paths.PREFIX}-retention.timer, in {paths.SLICE}"),
        ("the registry, TLS", f"{paths.REGISTRY_PORT}/tcp"),
        ("between nodes, mutual TLS", f"{paths.INTERNAL_PORT}/tcp"),
        ("heartbeats of the agents", f"{paths.HEARTBEAT_PORT}/udp"),
        ("metrics and state of the agent, TLS", f"{paths.AGENT_PORT}/tcp"),
        ("storage between nodes", f"{paths.RPC_PORT}/tcp"),
        ("VRRP between nodes", "IP protocol 112"),
        (
            "frontend, storage and its administration",
            f"loopback, {paths.FRONTEND_PORT}, {paths.S3_PORT}, {paths.ADMIN_PORT}; {paths.FENCE_PORT}/udp",
        ),
    ):
        yield f"| {what} | {where} |"
    yield ""


if __name__ == "__main__":
    TARGET.write_text(text())
    sys.stdout.write(f"{TARGET.name} written\n")
