"""Decode steps of our own: Triton kernels with which a layer takes two to four launches."""
