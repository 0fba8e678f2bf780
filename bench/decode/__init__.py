"""The parts of ``python -m bench.end_to_end``."""
