"""Decode steps of our own: Triton kernels with which a layer takes a few launches."""
