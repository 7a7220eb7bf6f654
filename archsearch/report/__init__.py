"""Figures and a self-contained page from a run."""
