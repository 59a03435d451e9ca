"""Parts of ``zeroshot.py``."""
