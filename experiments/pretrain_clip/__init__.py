"""Pretrains the mini CLIP on the glyph corpus."""
