"""What Triton kernels of several operators share."""
