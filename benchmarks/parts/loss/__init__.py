"""Parts of ``loss_throughput.py``."""
