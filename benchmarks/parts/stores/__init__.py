"""Parts of ``stores.py``."""
