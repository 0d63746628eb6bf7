"""A manifest that nothing needs, by which a tag is deleted where the registry deletes no tag alone.

Distribution 2.8 deletes a manifest by its digest, with all tags that it has (registry/handlers/manifests.go,
DeleteManifest: the tags that ``Lookup`` finds go with it), and refuses a tag. So a tag that is to go is given to this
manifest, and that is deleted. A run that breaks in between leaves a tag that means this manifest: it counts as none.
"""

from __future__ import annotations

from kubeadm_registry.images import artifacts
from kubeadm_registry.oci import descriptors as oci

TOMBSTONE = oci.Manifest(
    artifact_type="application/vnd.kubeadm-registry.tombstone.v1", config=artifacts.EMPTY, layers=(artifacts.EMPTY,)
).to_json()
TOMBSTONE_DIGEST = oci.digest_of(TOMBSTONE)
