"""The node agent: sees what is alive and right, and tells proxy, keepalived and the other servers."""

from __future__ import annotations

from kubeadm_registry import paths

NAME = "agent"
UNIT = paths.unit(NAME)
USER = paths.user(NAME)
