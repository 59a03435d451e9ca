"""Parts of ``step_throughput.py``; ``text_tower.py`` uses some of them."""
