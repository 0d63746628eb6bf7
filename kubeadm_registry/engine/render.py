"""Templates to text: strict, so that a value that nobody gave is an error and never an empty string."""

from __future__ import annotations

import threading
from functools import cache
from typing import TYPE_CHECKING

from kubeadm_registry import addresses

if TYPE_CHECKING:
    import jinja2

_compiling = threading.Lock()


@cache
def _environment() -> jinja2.Environment:
    import jinja2  # noqa: PLC0415  most commands render nothing

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kubeadm_registry"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  configuration files, not HTML; every value is validated by the model before
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    environment.filters.update(endpoint=addresses.endpoint, prefix=addresses.prefix, family=addresses.family)
    environment.tests["ipv6"] = addresses.is_ipv6
    return environment


def render(template: str, **values: object) -> bytes:
    """The text of *template* (a path below ``templates/``) with *values*. Raises jinja2.UndefinedError."""
    with _compiling:  # or all hosts, which want the same ones at the same time, would compile each
        compiled = _environment().get_template(template)
    return compiled.render(**values).encode()
