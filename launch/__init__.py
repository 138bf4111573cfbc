"""Thin entry points: quickstart, train, evaluate, bench."""
