"""Benchmarks: how fast we are beside PostgreSQL's own tools. `python -m benchmarks [names…] [--rows N] [--runs N]`."""
