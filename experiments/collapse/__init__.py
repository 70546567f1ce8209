"""Measures neural collapse of tuned prompts."""
