"""Which certificates this node serves, which CA its proxies trust, and how they take up new ones: by runtime sockets.

Run on the node with this source alone, so that it needs nothing that was installed there:

    python3 -I -c SOURCE show|load PEM CA ADDRESS PORT AGENT AGENTPORT SOCKET...

``load`` gives the certificate and key in the file PEM to each HAProxy that has another certificate; connections go on,
new handshakes use it, and so do those to other servers. Both verbs print a JSON object with SHA-1 fingerprints in hex:
*file* is that of PEM and *ca* are those of CA, *proxies* and *trusted* what each process has of them by its socket
(null: no process; in *trusted* also one that cannot be asked). *handshakes* has the certificates that a few handshakes
with ADDRESS:PORT brought, PEM by fingerprint; *agent* the one of AGENT:AGENTPORT, null if nobody answers there, or if
AGENT is empty; *trouble* what went wrong.

Source: HAProxy's management guide, "set ssl cert", "commit ssl cert", "show ssl cert", "show ssl ca-file" (2.5).
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import ssl
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

DEADLINE = 5.0  # seconds, for each answer
#: Two processes share the port, and the kernel gives a connection to either: so many handshakes miss one of them once
#: in a hundred times. What each has is known by its socket; this is to see what comes out.
HANDSHAKES = 8

CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
FINGERPRINT = re.compile(r"^SHA1 FingerPrint: ([0-9A-F]{40})$", re.MULTILINE)


def fingerprint(der: bytes) -> str:
    """As HAProxy writes it. Only to tell certificates apart."""
    return hashlib.sha1(der).hexdigest().upper()  # noqa: S324


def ask(path: str, text: str) -> Optional[str]:
    """What the process behind the socket *path* answers; None if there is no process. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(DEADLINE)
        try:
            wire.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        wire.sendall(text.encode())
        answer = b""
        while piece := wire.recv(65536):
            answer += piece
        return answer.decode(errors="replace")


def loaded(path: str, pem: str) -> Optional[str]:
    """The fingerprint of what a process serves under the name *pem*; None if there is no process. Raises OSError."""
    answer = ask(path, f"show ssl cert {pem}\n")
    if answer is None:
        return None
    found = FINGERPRINT.search(answer)
    return found[1] if found else f"none: {' '.join(answer.split())[:200]}"


def load(path: str, pem: str, content: str) -> str:
    """Have a process serve *content* under the name *pem*. Returns what it complains of, or nothing. Raises OSError."""
    # An empty line ends the payload.
    lines = "\n".join(line for line in content.splitlines() if line)
    said = ask(path, f"set ssl cert {pem} <<\n{lines}\n\n") or ""
    if "Transaction created" not in said and "Transaction updated" not in said:
        return " ".join(said.split())[:300]
    said = ask(path, f"commit ssl cert {pem}\n") or ""
    if "Success!" in said:
        return ""
    ask(path, f"abort ssl cert {pem}\n")
    return " ".join(said.split())[:300]


def trusted(path: str, ca: str) -> Optional[list[str]]:
    """The fingerprints of what a process trusts under the name *ca*; None if it cannot be asked. Raises OSError."""
    answer = ask(path, f"show ssl ca-file {ca}\n")
    return None if answer is None or "Unknown command" in answer else sorted(FINGERPRINT.findall(answer))


@lru_cache(1)
def context() -> ssl.SSLContext:
    """For handshakes in which whatever is shown is to be seen."""
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    return anyone


def handshake(address: str, port: int) -> bytes:
    """The certificate that a client is shown, DER. Raises OSError."""
    with socket.create_connection((address, port), DEADLINE) as wire, context().wrap_socket(wire) as tls:
        return tls.getpeercert(binary_form=True) or b""


def fingerprints(path: str) -> list[str]:
    """Those of all certificates in the file *path*; none without a file. Raises OSError, ValueError."""
    try:
        content = Path(path).read_text(encoding="ascii")
    except FileNotFoundError:
        return []
    return sorted(fingerprint(ssl.PEM_cert_to_DER_cert(one)) for one in CERTIFICATE.findall(content))


def of_agent(address: str, port: int) -> Optional[str]:
    """The certificate (PEM) of who listens at *address* and *port*; None if nobody answers, as while it restarts."""
    try:
        return ssl.DER_cert_to_PEM_cert(handshake(address, port))
    except OSError:
        return None


def main(arguments: list[str]) -> int:
    """See above. The exit status is 0 also where something went wrong: it is told."""
    verb, pem, ca, address, port, agent, agent_port, *sockets = arguments
    trouble: list[str] = []
    shown: dict[str, Any] = {"file": None, "ca": [], "proxies": {}, "trusted": {}, "handshakes": {}, "agent": None}
    shown["trouble"] = trouble
    try:
        content = Path(pem).read_text(encoding="ascii")
        found = CERTIFICATE.search(content)
        shown["file"] = fingerprint(ssl.PEM_cert_to_DER_cert(found[0])) if found else None
    except (OSError, ValueError) as error:
        trouble.append(f"{pem}: {error}")
    try:
        shown["ca"] = fingerprints(ca)
    except (OSError, ValueError) as error:
        trouble.append(f"{ca}: {error}")
    for path in sockets:
        try:
            shown["trusted"][path] = trusted(path, ca)
            shown["proxies"][path] = loaded(path, pem)
            if verb == "load" and shown["file"] and shown["proxies"][path] not in (None, shown["file"]):
                complaint = load(path, pem, content)
                trouble += [f"{path}: {complaint}"] if complaint else []
                shown["proxies"][path] = loaded(path, pem)
        except OSError as error:
            trouble.append(f"{path}: {error}")
    try:
        if any(shown["proxies"].values()):
            seen = {handshake(address, int(port)) for _ in range(HANDSHAKES)}
            shown["handshakes"] = {fingerprint(der): ssl.DER_cert_to_PEM_cert(der) for der in seen}
    except OSError as error:
        trouble.append(f"{address}:{port}: {error}")
    shown["agent"] = of_agent(agent, int(agent_port)) if agent else None
    print(json.dumps(shown))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
