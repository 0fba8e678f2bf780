"""The registry: which ops there are, who serves them, and the choice between those who can.

The lowest floor beside ``errors`` and ``dtypes``. Providers (``rdkernels.backends``) register
themselves here, op modules (``rdkernels.ops``) define their ops here; neither is imported here.
"""

from rdkernels.registry.bound import Bound, bind
from rdkernels.registry.choice import (
    BACKENDS,
    Provider,
    Serving,
    choose,
    forget_choices,
    function,
    only_by_name,
    reasons,
    refusal,
    register,
)
from rdkernels.registry.op import OPS, Op, copying, define, on_definition, runs_a_kernel

__all__ = [
    "BACKENDS",
    "OPS",
    "Bound",
    "Op",
    "Provider",
    "Serving",
    "bind",
    "choose",
    "copying",
    "define",
    "forget_choices",
    "function",
    "on_definition",
    "only_by_name",
    "reasons",
    "refusal",
    "register",
    "runs_a_kernel",
]
