"""``status``."""
