"""Continual learning: prompts along a stream of tasks."""
