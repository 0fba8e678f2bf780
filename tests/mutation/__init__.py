"""Planted bugs that the emulator tests must catch: ``python -m tests.mutation``. See README.md."""
