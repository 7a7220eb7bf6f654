"""Decode steps of our own: Triton kernels from which a layer's step takes two or three launches."""
