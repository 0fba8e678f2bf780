"""Providers of the ops: who can serve what, and why not.

``eager`` is the meaning of every op, ``native`` the compiled extension, ``triton`` the Triton
kernels. They register themselves with ``rdkernels.registry``, which chooses between them.
"""

from rdkernels.backends import eager, native, triton
from rdkernels.registry import register

register("native", native)
register("triton", triton)
register("eager", eager)
