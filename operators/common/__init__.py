"""Pieces that several operators share: norms, short convolutions, rotary embeddings."""
