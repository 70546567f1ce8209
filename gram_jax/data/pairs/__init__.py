"""Readers of image-text pairs."""
