"""What `init` tells the executor on a registry node, and what a run of the executor leaves behind: two files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kubeadm_registry import paths
from kubeadm_registry.errors import Error
from kubeadm_registry.formats import Damaged, Format

FORMAT = Format("the executor's settings")
RESULT = Format("the executor's result")
#: The name of an order: the digits of its digest. Its unit and its result are called by it.
ORDER = re.compile(r"[0-9a-f]{64}")
#: How many results are kept.
KEPT_RESULTS = 50
_HINT = "run `kubeadm-registry init`, which writes it"


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """What the executor on one node must know of its place."""

    node: str
    """The name of this node in the cluster file."""
    registry: str
    """This node's own HAProxy, such as ``https://10.0.0.11:5000``; no other one is asked."""
    ca: str
    """The path of the CA's certificate."""
    username: str
    password: str
    key: str
    """Signs what retention keeps in the registry."""
    agent_state: str
    """The path of the agent's state, which says whether this node holds the lease, and under which term."""
    sandbox_image: str | None = None
    """The pause image in the cluster file, which the timer keeps; None: containerd's own."""

    def to_json(self) -> bytes:
        """The content of the file."""
        registry = {"url": self.registry, "ca": self.ca, "username": self.username, "password": self.password}
        return FORMAT.render(
            {
                "node": self.node,
                "registry": registry,
                "retention_key": self.key,
                "agent_state": self.agent_state,
                **({"sandbox_image": self.sandbox_image} if self.sandbox_image else {}),
            }
        )

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """From the content of the file; keys of a newer release are ignored. Raises Damaged, NewerFormat."""
        values = FORMAT.parse(content).values
        registry = values.get("registry")
        if not isinstance(registry, dict):
            raise Damaged("its key registry is not an object")
        return cls(
            node=_text(values, "node"),
            registry=_text(registry, "url", "registry."),
            ca=_text(registry, "ca", "registry."),
            username=_text(registry, "username", "registry."),
            password=_text(registry, "password", "registry."),
            key=_text(values, "retention_key"),
            agent_state=_text(values, "agent_state"),
            sandbox_image=_text(values, "sandbox_image") if "sandbox_image" in values else None,
        )


def _text(values: Mapping[str, Any], key: str, above: str = "") -> str:
    value = values.get(key)
    if not (isinstance(value, str) and value):
        raise Damaged(f"its key {above}{key} is not text")
    return value


def load(path: Path) -> Settings:
    """The settings in the file *path*. Raises Error (SettingsUnreadable, SettingsDamaged), NewerFormat."""
    try:
        return Settings.parse(path.read_bytes())
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror}", code="SettingsUnreadable", hint=_HINT) from error
    except Damaged as error:
        raise Error(f"{path} is damaged: {error}", code="SettingsDamaged", hint=_HINT) from error


def order_path(order: str, folder: str | Path = f"{paths.ETC}/retention") -> str:
    """The file in which root leaves *order* for the executor of a node, beside its settings."""
    return f"{folder}/orders/{order}.json"


def result_path(order: str) -> str:
    """The file that the run of *order* leaves on its node."""
    return f"{paths.RETENTION_STATE}/{order}.json"


def write_result(order: str, values: Mapping[str, Any], folder: Path = Path(paths.RETENTION_STATE)) -> None:
    """Write the result of *order* whole, in place of an earlier one, and remove all but the newest. Raises OSError.

    It names the run of the unit that it is of (INVOCATION_ID, see systemd.exec(5)), so that it is not taken for the
    result of a later run of the same order.
    """
    document = {"order": order, "invocation": os.environ.get("INVOCATION_ID", ""), **values}
    target = folder / Path(result_path(order)).name
    new = target.with_name(f".{target.name}.new")
    with new.open("wb") as file:
        file.write(RESULT.render(document))
        file.flush()
        os.fsync(file.fileno())
    new.replace(target)
    results = [path for path in folder.glob("*.json") if ORDER.fullmatch(path.stem)]
    for old in sorted(results, key=lambda path: path.stat().st_mtime)[:-KEPT_RESULTS]:
        old.unlink()


def read_result(content: bytes) -> dict[str, Any]:
    """What a run said of itself: ``order``, ``invocation`` and what the executor adds. Raises Damaged, NewerFormat."""
    return RESULT.parse(content).values
