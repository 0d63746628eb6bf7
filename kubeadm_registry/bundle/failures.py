"""The ways in which a bundle can be refused, each with its code and its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kubeadm_registry.errors import BundleError, damaged
from kubeadm_registry.formats import HINT, NewerFormat


def incomplete(message: str) -> BundleError:
    """The bundle refers to something that it does not hold."""
    return BundleError(
        message,
        code="BundleIncomplete",
        hint="create the bundle again with `bundle create`, or copy it again if the copy is truncated",
    )


def refused(message: str, *, hint: str) -> BundleError:
    """Something was offered for a bundle that must not, or cannot, go into it."""
    return BundleError(message, code="BundleInputRefused", hint=hint)


def unavailable(message: str, *, hint: str) -> BundleError:
    """Something that should go into a bundle cannot be fetched or built on this machine."""
    return BundleError(message, code="BundleInputUnavailable", hint=hint)


#: What to do about an archive or a layout that images are taken from, and that is no bundle yet.
SAVE_AGAIN = "save the image again, or copy the archive again if the copy is truncated"


@contextmanager
def of_inputs() -> Iterator[None]:
    """Within it what is wrong with an image's file is not mended by creating a bundle: that is what is being done."""
    try:
        yield
    except BundleError as error:
        if error.hint not in (damaged("").hint, incomplete("").hint):
            raise
        raise BundleError(error.message, code=error.code, hint=SAVE_AGAIN) from error


class CacheDamaged(BundleError):
    """What an earlier run kept in the cache is not what it was: it can be fetched or compressed again."""

    code = "BundleInputUnavailable"


def cache_damaged(message: str) -> BundleError:
    """As *message* says, of a blob in the cache."""
    return CacheDamaged(message, hint="try again; if it fails again, check `dmesg` for disk errors")


def base_missing(message: str, *, hint: str) -> BundleError:
    """A delta leaves out what its base has, and the base is not there."""
    return BundleError(message, code="BundleBaseMissing", hint=hint)


def newer(message: str) -> BundleError:
    """A newer release made the bundle in a way that this one cannot read."""
    return BundleError(message, code=NewerFormat.code, hint=HINT)
