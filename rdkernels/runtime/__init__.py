"""What runs a sampler: the one loop, its outer step on the device, buffers, graphs, records."""

from rdkernels.runtime.trace import GenerationStats, OuterStep, Trace

__all__ = ["GenerationStats", "OuterStep", "Trace"]
