"""Parts of ``probe.py``."""
