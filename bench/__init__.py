"""What is measured by hand, not by tests.

====================================  =============================================================
``python -m pytest bench/micro``      every op on the CPU, provider by provider (pytest-benchmark)
``python -m bench.end_to_end``        tokens/s of whole decoding, sampler against sampler
``python -m bench.checkpoint_stages`` seconds and memory of a checkpoint saved, loaded and decoded
``python -m bench.figures``           the pictures of the documentation
``python -m bench.gpu_check``         all that only a GPU can tell
====================================  =============================================================

``decode``, ``gpu`` and ``figures`` are the parts of the commands; the other modules are shared.
"""
