"""Cheap evidence of how good an architecture is: `short_training.score` by one of `recipes`."""
