"""Baselines that score items directly, without semantic IDs."""
