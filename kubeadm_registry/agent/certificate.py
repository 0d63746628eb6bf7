"""When a certificate expires, read with the standard library alone."""

from __future__ import annotations

import ssl
from datetime import datetime, timezone
from pathlib import Path

EXPLICIT_0, UTC_TIME = 0xA0, 0x17


def not_after(path: Path) -> datetime:
    """The end of the validity of the first certificate in the PEM file *path*. Raises OSError, ValueError."""
    text = path.read_text(encoding="ascii", errors="replace")
    begin = text.index("-----BEGIN CERTIFICATE-----")
    end = text.index("-----END CERTIFICATE-----", begin) + len("-----END CERTIFICATE-----")
    try:
        return _end(ssl.PEM_cert_to_DER_cert(text[begin:end]))
    except IndexError as error:
        raise ValueError("the certificate ends too early") from error


def _end(der: bytes) -> datetime:
    certificate = _inside(der, 0)
    at = _inside(der, certificate)  # into tbsCertificate
    if der[at] == EXPLICIT_0:  # version
        at = _after(der, at)
    for _ in ("serial number", "signature", "issuer"):
        at = _after(der, at)
    at = _after(der, _inside(der, at))  # past notBefore
    start = _inside(der, at)
    value = der[start : _after(der, at)].decode("ascii")
    if der[at] == UTC_TIME:  # two digits, 1950 to 2049 (RFC 5280, 4.1.2.5.1)
        value = ("19" if int(value[:2]) >= 50 else "20") + value
    return datetime.strptime(value, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)


def _length(der: bytes, at: int) -> tuple[int, int]:
    """Length of the value at *at* and where it starts."""
    first = der[at + 1]
    if first < 0x80:
        return first, at + 2
    count = first & 0x7F
    return int.from_bytes(der[at + 2 : at + 2 + count], "big"), at + 2 + count


def _inside(der: bytes, at: int) -> int:
    return _length(der, at)[1]


def _after(der: bytes, at: int) -> int:
    length, start = _length(der, at)
    if start + length > len(der):
        raise ValueError("the certificate ends too early")
    return start + length
