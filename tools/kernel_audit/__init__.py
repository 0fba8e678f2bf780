"""What the compilers made of the kernels, without a GPU: ``python -m tools.kernel_audit``."""
