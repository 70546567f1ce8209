"""Tunes prompts on labeled datasets and evaluates them under the field's protocols."""
