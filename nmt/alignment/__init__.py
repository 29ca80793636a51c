"""Attention weights → links, alignment error rate, files and pictures (no torch)."""
