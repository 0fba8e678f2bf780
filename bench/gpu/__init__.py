"""The sections of ``python -m bench.gpu_check``, a module each."""
