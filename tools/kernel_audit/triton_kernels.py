"""Registers, local memory and shared memory of the Triton kernels.

triton brings its own ptxas and cuobjdump, so it is all that is needed.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rdkernels.backends.triton import interpreted
from tools.kernel_audit import sass
from tools.kernel_audit.gate import CannotMeasure, Gate, Measurement

ARCHS = ("80", "90", "100")
GATE = Gate(
    table=Path(__file__).with_name("triton_resources.json"),
    compiler="triton",
    at_most={"registers": "registers", "shared": "bytes shared"},
    at_least={},
)
COLUMNS = ("registers", "stack", "local_accesses", "shared", "threads", "tensor_core_products")

_USAGE = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+)")
_TENSOR_CORES = ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA")  # sm_80, sm_90, sm_100


@dataclass(frozen=True)
class Resources:
    """One kernel on one architecture. ``stack`` and ``shared`` in bytes, the rest are counts."""

    registers: int
    stack: int
    local_accesses: int  # LDL and STL in the machine code
    shared: int
    threads: int
    tensor_core_products: int  # instructions in the machine code

    def faults(self, kernel: str) -> Iterator[str]:
        if self.stack:
            yield f"stack: {self.stack} bytes"
        if self.local_accesses:
            yield f"local accesses: {self.local_accesses}"
        has_products = kernel.startswith("recurrent_attention_kernel<") and "fp32" not in kernel
        if has_products and not self.tensor_core_products:
            yield "no tensor-core products"


def measure(archs: Iterable[str], huginn_only: bool = False) -> Measurement:
    """Compile everything that the provider launches for ``archs`` ("90") and look at it."""
    if importlib.util.find_spec("triton") is None:
        raise CannotMeasure("triton is not installed")
    if interpreted():
        raise CannotMeasure("TRITON_INTERPRET is set: nothing is compiled")
    cuobjdump = sass.find_cuobjdump()
    if cuobjdump is None:
        raise CannotMeasure("no cuobjdump; triton for Linux has one")
    import triton

    from tools.kernel_audit.triton_launches import compile_only, huginn_launches, other_launches

    archs = tuple(archs)
    variants = huginn_launches() | ({} if huginn_only else other_launches())
    names = tuple(f"sm_{arch}" for arch in archs)
    result = Measurement(triton.__version__, names, complete=not huginn_only)
    for arch, name in zip(archs, names, strict=True):
        for variant, run in variants.items():
            with compile_only(int(arch)) as launches:
                run()
            for kernel, compiled in launches:
                by_arch = result.kernels.setdefault(f"{kernel}<{variant}>", {})
                by_arch[name] = _resources(cuobjdump, compiled)
    return result


def _resources(cuobjdump: Path, compiled: object) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.run(
            [str(cuobjdump), "--dump-resource-usage", cubin.name],
            capture_output=True,
            text=True,
            check=True,
        )
        (code,) = sass.disassemble(cuobjdump, Path(cubin.name)).values()
    found = _USAGE.search((usage.stdout + usage.stderr).replace("\n", " "))
    if found is None:
        raise CannotMeasure(f"cuobjdump says nothing of registers: {usage.stdout}{usage.stderr}")
    instructions = [instruction.name.split(".")[0] for instruction in code]
    return Resources(
        registers=int(found.group(2)),
        stack=int(found.group(3)),
        local_accesses=sum(name in sass.FORBIDDEN for name in instructions),
        shared=compiled.metadata.shared,
        threads=compiled.metadata.num_warps * 32,
        tensor_core_products=sum(name in _TENSOR_CORES for name in instructions),
    )
