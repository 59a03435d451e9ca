"""Parts of ``step_throughput.py``; ``text_tower.py`` shares its cases and their checks."""
