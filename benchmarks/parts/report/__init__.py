"""The rows of a run of the suite: shown, and taken over into ``benchmarks/results``."""
