"""Parts of ``text_tower.py``."""
