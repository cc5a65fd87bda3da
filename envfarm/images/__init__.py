"""Images of boxes, without a registry: Dockerfiles of a small subset, made from Debian packages by mmdebstrap."""
