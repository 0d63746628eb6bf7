"""Text of others as it may be shown: in one that is not from us a terminal could find orders."""

from __future__ import annotations

import re
from typing import Literal

#: How much what is said matters.
Level = Literal["info", "warning"]

#: C0 controls but tab and newline, DEL, C1 controls, what turns the direction of writing (Unicode TR 9), what has no
#: width, other line ends, halves of pairs, tags. An ESC or a U+009B begins an order to the terminal (ECMA-48).
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)

#: What Python writes around the words of the system and of OpenSSL: ``[Errno 111] ``, ``[SSL: X] ``, `` (_ssl.c:9)``.
_NUMBERS = re.compile(r"\[Errno -?\d+\] |\[SSL[^\]]*\] | \(_ssl\.c:\d+\)")


def printable(text: str) -> str:
    """*text* with everything in it that a terminal would not just show as its escape: ``\\x1b``, ``\\u202e``."""
    return _UNSAFE.sub(lambda found: _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return f"\\u{code:04x}" if code > 0xFF else f"\\x{code:02x}"


def shown(value: object, most: int = 80) -> str:
    """*value* as an error quotes it: as Python writes it, at most so many characters of it."""
    # Of a large value only the beginning is made readable; what follows is not shown.
    text = repr(value[: most + 1] if isinstance(value, str) else value)
    text = printable(text)
    if len(text) <= most:
        return text
    size = f" ... ({len(value)} characters)" if isinstance(value, str) else " ..."
    return text[:most].rstrip("'\"") + size


def reason(error: BaseException) -> str:
    """What *error* says, without Python's numbers; its type if it says nothing."""
    return _NUMBERS.sub("", str(error)) or type(error).__name__


def counted(count: int, noun: str) -> str:
    """Return *count* and *noun*, which is regular: ``1 node``, ``3 nodes``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
