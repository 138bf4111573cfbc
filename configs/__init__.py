"""Experiments as ml_collections configs: one file each."""
