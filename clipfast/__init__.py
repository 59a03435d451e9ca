"""clipfast: a low-level, performance-first training engine for CLIP (Radford et al. 2021)."""

__version__ = "0.1.0"
