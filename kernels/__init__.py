"""Triton kernels and their launchers: no autograd, no modules. Installed as clipfast.kernels."""
