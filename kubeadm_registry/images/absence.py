"""Whether what a registry says is not there is really not there: zot makes a 404 of a storage error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from kubeadm_registry.errors import RegistryError
from kubeadm_registry.oci import canary
from kubeadm_registry.registry import Api, retry

NOT_WHOLE = "RegistryNotWhole"


def out_of_reach(what: str, remedy: str, *, unknown: str = "", code: str = NOT_WHOLE) -> RegistryError:
    """The error, a temporary one, for *what* is listed and cannot be read, so that something is *unknown*.

    The *remedy* is for a registry that is whole.
    """
    so = f", so it is not known {unknown}" if unknown else ""
    return RegistryError(
        f"{what} is listed but cannot be read{so}", code=code, temporary=True,
        hint=f"see `kubeadm-registry status`; if the registry is healthy, {remedy}",
    )  # fmt: skip


def expect_canary(registry: Api) -> None:
    """Raise RegistryError, a temporary one, unless the canary image can be read: then anything may be out of reach."""
    if registry.manifest(canary.REPOSITORY, canary.TAG) is None:
        raise RegistryError(
            f"{registry.name} does not find the canary image, so what it does not find may merely be unreadable now",
            code=NOT_WHOLE, hint="see `kubeadm-registry status`; `kubeadm-registry verify` pushes that image",
            temporary=True,
        )  # fmt: skip


@contextmanager
def between_canaries(registry: Api, patience: float) -> Iterator[None]:
    """What is not found within it is not there: the canary image can be read before and after.

    Each time it is asked for again for *patience* seconds. Raises RegistryError.
    """
    retry(partial(expect_canary, registry), patience)
    yield
    retry(partial(expect_canary, registry), patience)
