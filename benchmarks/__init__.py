"""Benchmarks of clipfast against its peers; run one as ``python benchmarks/<subject>.py``."""
