"""Parts of ``near_duplicates.py``."""
