"""Benchmarks, run by `python -m launch.bench NAME`; each prints a table and returns its figures."""
