"""The tables of README and docs, rendered from the rows in ``benchmarks/results``."""
