"""Attention pooling in Triton; `launch` holds what operators call."""
