"""Where a bundle stands in its line: a full one begins it, and each delta follows on the one that it was made since."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from kubeadm_registry.errors import damaged
from kubeadm_registry.oci import descriptors as oci

_OURS = "dev.kubeadm-registry.bundle."
#: The annotations of a delta's index: all of them or none. Others of that prefix are a newer release's.
BASE, ROOT, SEQUENCE, LEFT_OUT = (_OURS + name for name in ("base", "root", "sequence", "left-out"))
_KEYS = {BASE, ROOT, SEQUENCE, LEFT_OUT}

_SEQUENCE = re.compile(r"[1-9][0-9]{0,5}")
_LeftOut = TypeAdapter(dict[str, list[oci.Digest]])


@dataclass(frozen=True, slots=True)
class Lineage:
    """A bundle's place in its line, by the digests of indexes.

    *index* is its own, *root* that of the full bundle which began the line, *base* that of the bundle before it
    (empty: it is a full one), *sequence* how many came before it. *left_out* are the blobs that are needed and not
    held, each with the image (or program) of the base that has it.
    """

    index: str
    root: str
    base: str
    sequence: int
    left_out: Mapping[str, str]

    @classmethod
    def of(cls, index: oci.Index, content: bytes, where: str) -> Lineage:
        """The place that *index*, whose JSON is *content*, says. Raises BundleError if it is none."""
        said = {key: value for key, value in (index.annotations or {}).items() if key in _KEYS}
        digest = oci.digest_of(content)
        if not said:
            return cls(digest, digest, "", 0, {})
        if not (
            said.keys() == _KEYS
            and oci.DIGEST.fullmatch(said[BASE])
            and oci.DIGEST.fullmatch(said[ROOT])
            and _SEQUENCE.fullmatch(said[SEQUENCE])
        ):
            raise damaged(f"{where}: the index does not name the base of the delta correctly")
        try:
            groups = _LeftOut.validate_json(said[LEFT_OUT])
        except ValidationError as error:
            raise damaged(f"{where}: {LEFT_OUT} in the index is not a valid list of omitted blobs") from error
        left_out = {one: name for name, digests in groups.items() for one in digests}
        if len(left_out) != sum(map(len, groups.values())):
            raise damaged(f"{where}: {LEFT_OUT} in the index lists a blob twice")
        return cls(digest, said[ROOT], said[BASE], int(said[SEQUENCE]), left_out)

    def next(self, left_out: Iterable[tuple[str, str]]) -> dict[str, str]:
        """The annotations of a delta since this bundle that leaves out these blobs (digest, image that has it)."""
        groups: dict[str, list[str]] = {}
        for digest, name in sorted(left_out):
            groups.setdefault(name, []).append(digest)
        return {
            BASE: self.index,
            ROOT: self.root,
            SEQUENCE: str(self.sequence + 1),
            LEFT_OUT: oci.canonical(groups).decode(),
        }
