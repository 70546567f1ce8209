"""Measures speed, memory and operations of training steps."""
