"""Which version of the format a bundle has, and what vouches for its files that are not blobs.

Version 1 is what release 0.1 wrote: it says nothing of either. Version 2 has two annotations in ``index.json``: the
format, by the rules of ``kubeadm_registry.formats``, and the digests of files such as ``unpack.sh``, which a signature
of the index then covers. The digest of ``index.json`` itself is in ``oci-layout``, against accidents only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError

from kubeadm_registry import formats
from kubeadm_registry.agent.formats import KEY
from kubeadm_registry.bundle import archive
from kubeadm_registry.bundle.failures import newer
from kubeadm_registry.errors import BundleError, damaged
from kubeadm_registry.oci import descriptors as oci

BUNDLE = formats.Format("the bundle", version=2)
#: Annotations of the index. Release 0.1 ignores them: it takes only those with ``bundle.`` for its own.
FORMAT, FILES = "dev.kubeadm-registry.format", "dev.kubeadm-registry.files"
#: The key of the index's digest in ``oci-layout``, whose other readers ignore what they do not know.
INDEX_DIGEST = "dev.kubeadm-registry.index"

_Files = TypeAdapter(dict[str, oci.Digest])


@dataclass(frozen=True, slots=True)
class Version:
    """What a bundle says of its format (*found*), and the digests of its *files* that are not blobs."""

    found: formats.Found = field(default_factory=lambda: formats.Found({}))
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """The version of the bundle's format."""
        return int(self.found.stamp.get("version", 1))

    def require_writer(self, where: str) -> None:
        """Raise BundleError (NewerFormat) if only a newer release may change the bundle *where*."""
        if not BUNDLE.may_write(self.found):
            raise newer(f"{where}: the bundle was created by a newer release; refusing to change it")


def index_annotations(files: Mapping[str, bytes]) -> dict[str, str]:
    """The annotations of the index of a bundle that is written here, which has *files* besides its blobs."""
    digests = {name: oci.digest_of(content) for name, content in files.items()}
    told = {FORMAT: oci.canonical(BUNDLE.seal({})[KEY]).decode()}
    return told | ({FILES: oci.canonical(digests).decode()} if digests else {})


def layout_file(index: bytes) -> bytes:
    """The content of ``oci-layout`` beside *index*."""
    return oci.canonical({**json.loads(oci.LAYOUT), INDEX_DIGEST: oci.digest_of(index)})


def read(layout: bytes, content: bytes, where: str) -> tuple[oci.Index, Version]:
    """The index that is *content*, beside which *layout* is ``oci-layout``, and the version of the format it has.

    Raises BundleError: BundleDamaged, or NewerFormat if only a newer release can read it.
    """
    told = _index_digest(layout, where)
    if told not in ("", oci.digest_of(content)):
        raise damaged(f"{where}: {oci.INDEX_FILE} does not have the digest in {oci.LAYOUT_FILE}")
    try:
        index = oci.parse(oci.Index, content, f"{where}: {oci.INDEX_FILE}")
    except BundleError:
        _version(_format_alone(content), where)  # what a newer release wrote may not be an index to this one
        raise
    version = _version(index.annotations or {}, where)
    if version.number > 1 and not told:
        raise damaged(f"{where}: {oci.LAYOUT_FILE} lacks the digest of {oci.INDEX_FILE}")
    return index, version


def _index_digest(layout: bytes, where: str) -> str:
    """What ``oci-layout`` says; empty if it says nothing, as in a layout of another tool."""
    try:
        document = json.loads(layout)
    except (ValueError, RecursionError) as error:
        raise damaged(f"{where}: {oci.LAYOUT_FILE} is not JSON: {layout[:80]!r}") from error
    if not isinstance(document, dict) or document.get("imageLayoutVersion") != "1.0.0":
        raise damaged(f"{where} is an OCI image layout of an unknown version: {layout[:80]!r}")
    told = document.get(INDEX_DIGEST, "")
    if told and not (isinstance(told, str) and oci.DIGEST.fullmatch(told)):
        raise damaged(f"{where}: {INDEX_DIGEST} in {oci.LAYOUT_FILE} is not a digest: {str(told)[:80]!r}")
    return str(told)


def _format_alone(content: bytes) -> dict[str, str]:
    """The annotation ``FORMAT`` of *content*, which cannot be read as an index here; nothing if it has none."""
    try:
        told = json.loads(content)["annotations"][FORMAT]
    except (ValueError, TypeError, LookupError, RecursionError):
        return {}
    return {FORMAT: told} if isinstance(told, str) else {}


def _version(told: Mapping[str, str], where: str) -> Version:
    if FORMAT not in told:
        return Version()
    try:
        found = BUNDLE.open({KEY: json.loads(told[FORMAT])})
        files = _Files.validate_json(told.get(FILES, "{}"))
    except formats.NewerFormat as error:
        raise newer(f"{where}: {error.message}") from error
    except ValidationError as error:
        raise damaged(f"{where}: {FILES} in the index is not a list of files with their digests") from error
    except (ValueError, RecursionError) as error:
        raise damaged(f"{where}: {FORMAT} in the index is not valid: {error}") from error
    for name in files:
        if archive.safe_name(name) != name or name.startswith("blobs/") or name in (oci.LAYOUT_FILE, oci.INDEX_FILE):
            raise damaged(f"{where}: {FILES} in the index names {name[:200]!r}")
    return Version(found, files)
