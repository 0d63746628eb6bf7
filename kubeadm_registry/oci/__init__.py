"""What the OCI specifications say of images: descriptors, references, and the one image that everybody knows."""
