"""QuickGELU in Triton; `launch` holds what operators call."""
