"""Compositional zero-shot learning: tunes attributes and objects of seen pairs, recognizes unseen pairs."""
