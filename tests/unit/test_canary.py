"""The known object: the same bytes for ever, and large enough to prove something."""

from __future__ import annotations

import hashlib
import json
import zlib

from kubeadm_registry.oci import canary


def test_its_digests_never_change() -> None:
    """The agents of a running cluster read it by digest: another one would be missing there after an update."""
    assert canary.MANIFEST.digest == "sha256:7b30190c2ffce2ce2fa4afe4c58e110841f1b5281ce4ceb22a650223732c644f"
    assert canary.LAYER.digest == "sha256:1a105c34a82c80fb8cb878a15837043e26c26d92e347e53fe9db670f08a6689f"


def test_it_is_an_image() -> None:
    manifest = json.loads(canary.MANIFEST.content)
    assert manifest["mediaType"] == canary.MANIFEST.media_type == canary.MANIFEST_TYPE
    assert manifest["config"] == canary.CONFIG.descriptor()
    [layer] = manifest["layers"]
    content = canary.LAYER.content
    assert layer["digest"] == "sha256:" + hashlib.sha256(content).hexdigest()
    assert layer["size"] == len(content)
    config = json.loads(canary.CONFIG.content)
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]


def test_its_layer_reaches_the_disks() -> None:
    """Garage keeps what is small, or becomes so by compression, in its metadata: reading that proves nothing."""
    assert len(canary.LAYER.content) >= 64 * 1024
    assert len(zlib.compress(canary.LAYER.content, 9)) > 0.99 * len(canary.LAYER.content)
