"""Microbenchmarks of the ops on the CPU: ``python -m pytest bench/micro --benchmark-only``."""
