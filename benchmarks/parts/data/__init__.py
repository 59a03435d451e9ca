"""What ``data_throughput.py`` is made of."""
