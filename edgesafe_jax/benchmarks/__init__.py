"""Benchmarks, a file for each suite beside a common harness; `launch.bench` runs them with peers in other libraries.

A suite is a function that returns `rows` (a table), `values` (flat numbers) and perhaps `figures` (PNGs by name).
"""
