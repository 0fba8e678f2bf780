"""One table of calls of the ops: what tests, the emulator, mutants and benchmarks call them with.

For developers; not part of the package that users install. ``tests`` and ``bench`` both import it,
and it imports neither.
"""

from cases.shape import OpCase, Shape
from cases.table import CASES, labelled

__all__ = ["CASES", "OpCase", "Shape", "labelled"]
