"""Which blocks objects of Garage consist of, and which blocks are on the disk of this node. Nothing is read of them.

Run on the node with this source alone; the request stands on standard input:

    python3 -I -c SOURCE < {"host", "port", "token", "bucket", "keys"}
    python3 -I -c SOURCE < {"data", "blocks"}

The first asks Garage's admin API, with the token in the file *token*, about the objects *keys* of the bucket with the
global alias *bucket*, and prints a line of JSON for each, in their order: null if it is not there, else a list of
[hash, bytes]; it is empty for an object so small that it stands in the tables. The bytes of an object whose list of
blocks is lost are a block that no node has. The second looks for files of *blocks*, by hash with their bytes (null: not
known), below the directory *data*, and prints each hash that is not there whole. A file system that does not tell is an
error: what no node has is deleted. The last line is ``end``.

Source: ``InspectObject`` of the admin API v2, and ``block_dir_from`` in block/layout.rs of Garage 2.3.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional
from urllib.parse import urlencode

DEADLINE = 30.0  # seconds, for each answer
AT_ONCE = 8  # questions; each waits for a majority of the storage's nodes
MISSING = 404
#: A block that Garage compressed has another size. This registry's Garage compresses none.
PACKED = ".zst"
#: In place of the hashes that the storage has lost. Objects and their lists of blocks are rows of different tables.
UNLISTED = "unlisted-"


def resolved(request: Mapping[str, Any]) -> Iterator[str]:
    """The lines about objects. Raises OSError, http.client.HTTPException, ValueError, KeyError."""
    token = Path(request["token"]).read_text(encoding="ascii").strip()
    wires = threading.local()

    def ask(path: str, **words: str) -> Optional[dict[str, Any]]:
        if not hasattr(wires, "one"):
            wires.one = http.client.HTTPConnection(request["host"], request["port"], timeout=DEADLINE)
        wires.one.request("GET", f"{path}?{urlencode(words)}", headers={"Authorization": f"Bearer {token}"})
        answer = wires.one.getresponse()
        content = answer.read()
        if answer.status == MISSING:
            return None
        if answer.status != 200:
            raise http.client.HTTPException(f"status {answer.status}: {content[:300].decode(errors='replace')}")
        found: dict[str, Any] = json.loads(content)
        return found

    bucket = ask("/v2/GetBucketInfo", globalAlias=request["bucket"])
    if bucket is None:
        raise ValueError(f"there is no bucket {request['bucket']}")
    identity = str(bucket["id"])

    def one(key: str) -> str:
        found = ask("/v2/InspectObject", bucketId=identity, key=key)
        whole = [version for version in (found or {}).get("versions", ()) if version.get("size") is not None]
        if not whole or whole[-1].get("deleteMarker"):
            return "null"
        blocks = [[block["hash"], block["size"]] for block in whole[-1].get("blocks", ())]
        unlisted = whole[-1]["size"] - sum(size for _, size in blocks)
        if unlisted > 0 and not whole[-1].get("inline"):
            blocks.append([UNLISTED + whole[-1]["uuid"], unlisted])
        return json.dumps(blocks)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(one, request["keys"])
    yield "end"


def lacking(request: Mapping[str, Any]) -> Iterator[str]:
    """The lines about files."""
    for block, size in request["blocks"].items():
        place = Path(request["data"], block[:2], block[2:4])
        if not _whole(place / block, size) and not _whole(place / (block + PACKED), None):
            yield block
    yield "end"


def _whole(path: Path, size: Optional[int]) -> bool:
    try:
        found = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return False  # only these: what a disk with errors does not show for now may be all that is left of a block
    return found > 0 if size is None else found == size


def main() -> int:
    """See above."""
    request = json.load(sys.stdin)
    work, what = (resolved, "ask the storage") if "keys" in request else (lacking, "look for blocks")
    try:
        for line in work(request):
            print(line)
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        print(f"cannot {what}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
