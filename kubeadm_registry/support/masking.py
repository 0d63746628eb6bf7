"""No secret leaves the site: each form in which one may stand in a text is masked, and then searched for."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus

from kubeadm_registry import pki, secrets
from kubeadm_registry.formats import KEY

#: Shorter texts are words, which would be masked wherever they stand.
SHORTEST = 8
#: What the file holds beside secrets.
_PUBLIC = frozenset({"generation", "made", "ca_certificate", "s3_key_id", KEY})
#: Of a storage key the second half is the node's public name.
_SEED = 64
#: Private keys in PEM (RFC 7468), whoever's; also what is left of one that was cut, at its end or with what was before.
_PRIVATE = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]*)PRIVATE KEY-----"
    rb"(?:.*?-----END \1PRIVATE KEY-----|(?:(?:\s+[A-Za-z0-9+/=]{16,})++\s?[A-Za-z0-9+/]*)?)"
    rb"|\A[A-Z -]*+[A-Za-z0-9+/=\s]*+-----END [A-Z0-9 ]*PRIVATE KEY-----",
    re.DOTALL,
)
#: A password in a URL, as of a proxy in a drop-in file of containerd's unit, which Go takes without a scheme, and with
#: these characters unquoted (RFC 3986, section 3.2.1; net/url).
_LOGIN = re.compile(rb"""(?i)((?:://|_proxy\\*["']?\s?[=:]\s?\\*["']?)[^\s/:"<>]{0,200}:)[^\s/"<>]{1,4000}@""")
#: Values of keys that sound like a secret, in TOML, JSON, YAML, INI and HTTP headers, also where such a text is quoted
#: in another one: those of other programs are in no list. A table in a line has keys of its own.
_NAMED = re.compile(
    rb"""(?i)(?P<head>(?<![\w-])[\w-]{0,200}?(?:pass(?:w(?:or)?d|phrase)?|secret|secret_?(?:access_?)?key|token"""
    rb"""|authorization|credential|auth|api_?key)"""
    rb"""(?![\w-])\\*["']?\s{0,99}[:=]\s{0,99})(?P<value>\[\s{0,99}(?:["'][^"'\n]{0,999}["'],?\s{0,99}){0,9}\]"""
    rb"""|\[[^\]\n]{0,999}\]|"{3}[^"]{0,999}"{3}|'{3}[^']{0,999}'{3}|(?P<quote>\\+")[^\n]{0,999}?(?<!\\)(?P=quote)"""
    rb"""|"(?:[^"\\\n]|\\.){0,999}"|'[^'\n]{0,999}'"""
    rb"""|[^\s,{}\n]+(?:[,{}]+(?![\w-]{1,200}\\*["']?\s{0,9}[:=]|\\*["'])[^\s,{}]+)*"""
    rb"""(?:[ \t]+[A-Za-z0-9+/=_.~-]{8,})?)"""
)
#: Of ours, names of files and not secrets; and what is masked.
_PATHS = re.compile(rb"""^["']?(?:/[a-z]+/|<(?:secret|private key)[ >]|(?i:false|true|null|none)(?![\w-]))""")


@dataclass(frozen=True, slots=True)
class Mask:
    """What is masked: each *forms* of a secret, with the name of the secret. The longest first."""

    forms: Mapping[bytes, str]

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Mask:
        """Of the secrets *values* by their names."""
        found: dict[bytes, str] = {}
        for name, value in values.items():
            for form in _forms(value):
                found.setdefault(form, name)
        return cls(dict(sorted(found.items(), key=lambda item: -len(item[0]))))

    def masked(self, content: bytes) -> bytes:
        """*content* with a word in place of each secret."""
        for form, name in self.forms.items():
            if form in content:
                content = content.replace(form, f"<secret {name}>".encode())
        content = _PRIVATE.sub(rb"<private key>", content)
        content = _LOGIN.sub(rb"\1<secret>@", content)
        return _NAMED.sub(_named, content)

    def found(self, content: bytes) -> list[str]:
        """The names of the secrets that are in *content*, also where line breaks or blanks divide one."""
        whole = re.sub(rb"[\s\\]+", b"", content)
        return sorted({name for form, name in self.forms.items() if form in content or form in whole})


def _named(found: re.Match[bytes]) -> bytes:
    return found[0] if _PATHS.match(found["value"]) else found["head"] + b"<secret>"


def values(content: bytes) -> dict[str, str]:
    """The secrets in a file of secrets, by name; of a damaged file every longer text that is in it."""
    try:
        document = json.loads(content)
    except ValueError:
        words = re.findall(rb"[^\s\"',:{}\[\]]{16,}", content)
        return {f"damaged {number}": word.decode(errors="replace") for number, word in enumerate(words)}
    return dict(_texts(document, "")) if isinstance(document, dict) else {}


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, one in value.items():
            if name or key not in _PUBLIC:
                yield from _texts(one, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _texts(one, f"{name}.{number}")
    elif isinstance(value, str) and len(value) >= SHORTEST:
        yield name, value
        if name.startswith("node_keys.") and len(value) > _SEED:
            yield f"{name} (seed)", value[:_SEED]
        if name.endswith("_password"):
            user = name.removesuffix("_password")
            yield f"login of {user}", secrets.basic(user.rpartition(".")[2].removeprefix("former_"), value)


def _forms(value: str) -> Iterator[bytes]:
    """*value* as it is, by lines, URL-quoted, in hexadecimal digits, in base64 wherever it begins, and as JSON."""
    texts = [value, *pki.secret_lines(value)]
    for text in texts:
        raw = text.encode()
        yield raw
        yield json.dumps(text)[1:-1].encode()
        for quoted in (quote(text, safe=""), quote(text), quote_plus(text)):
            yield quoted.encode()
            yield re.sub(r"%[0-9A-F]{2}", lambda found: found[0].lower(), quoted).encode()
        yield raw.hex().encode()
        yield raw.hex().upper().encode()
        yield from _in_base64(raw)
        if re.fullmatch(r"(?:[0-9a-f]{2}){8,}", text):
            yield text.upper().encode()
            yield from _in_base64(bytes.fromhex(text))


def _in_base64(raw: bytes) -> Iterator[bytes]:
    """What is the same of *raw* in base64, standard and URL-safe, after any other bytes and before any."""
    for before in range(3):
        text = base64.b64encode(bytes(before) + raw)
        first = (0, 2, 3)[before]  # digits that depend on what is before as well
        rest = (before + len(raw)) % 3
        last = len(text) - (0, 3, 2)[rest]  # and on what follows
        inner = text[first:last]
        if len(inner) >= SHORTEST:
            yield inner
            yield inner.replace(b"+", b"-").replace(b"/", b"_")
