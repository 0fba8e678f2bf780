"""Registers, spills, shared memory, occupancy and main loops of the CUDA kernels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tools.cuda_toolkit import DEFAULT_ARCHS, find_toolkit
from tools.kernel_audit import cubins, occupancy, sass
from tools.kernel_audit.gate import CannotMeasure, Gate, Measurement

ARCHS = DEFAULT_ARCHS
GATE = Gate(
    table=Path(__file__).with_name("kernel_resources.json"),
    compiler="nvcc",
    at_most={"registers": "registers"},
    at_least={"blocks_per_sm": "blocks per SM"},
)
COLUMNS = ("registers", "spill_stores", "dynamic_shared", "threads", "blocks_per_sm", "occupancy")
ATTENTION = "recurrent_attention_kernel<"  # the kernels whose main loop is looked at
REQUIRED_IN_LOOP = ("HMMA", "LDSM", "LDGSTS.128")


@dataclass(frozen=True)
class Resources:
    """One kernel on one architecture. Bytes, except where the name says otherwise."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    static_shared: int
    dynamic_shared: int
    threads: int
    blocks_per_sm: int
    occupancy: float  # share of the SM's warps
    main_loop: dict[str, int] | None = None  # instructions by kind; attention only

    def faults(self, kernel: str) -> Iterator[str]:
        for field in ("spill_stores", "spill_loads", "stack"):
            if getattr(self, field) > 0:
                yield f"{field.replace('_', ' ')}: {getattr(self, field)} bytes"
        if self.blocks_per_sm == 0:
            yield "does not fit an SM"


def measure(archs: Iterable[str], jobs: int) -> Measurement:
    """Compile everything for ``archs`` ("90a") and look at it."""
    archs, toolkit = tuple(archs), find_toolkit()
    if old := [arch for arch in archs if not toolkit.knows(arch)]:
        raise CannotMeasure(f"nvcc {toolkit.version} does not compile for sm_{', sm_'.join(old)}")
    result = Measurement(toolkit.version, tuple(f"sm_{arch}" for arch in archs))
    cuobjdump = sass.find_cuobjdump()
    if cuobjdump is None:
        result.notes.append("no cuobjdump (pip install triton): machine code not looked at")
    shapes = cubins.launch_shapes(toolkit)
    for arch, units in cubins.compile_kernels(toolkit, archs, jobs).items():
        for unit in units:
            _add(result, arch, unit, shapes, cuobjdump)
    return result


def _add(
    result: Measurement,
    arch: str,
    unit: cubins.Compilation,
    shapes: list[tuple[str, int, int]],
    cuobjdump: Path | None,
) -> None:
    """The kernels of one cubin."""
    usages = cubins.usages(unit)
    names = cubins.readable_names(usages)
    code = sass.disassemble(cuobjdump, unit.target) if cuobjdump and usages else {}
    for mangled, usage in usages.items():
        name = names[mangled]
        shape = next((s for s in shapes if fnmatchcase(name, s[0])), None)
        if shape is None:
            result.problems.append(f"{name}: its launch is not in {cubins.LAUNCHES.name}")
            continue
        _, threads, dynamic = shape
        shared = usage.static_shared + dynamic
        blocks = occupancy.blocks_per_sm(arch, threads, usage.registers, shared)
        loop = None
        if mangled in code:
            found, loop = inspect(name, code[mangled])
            result.problems += [f"sm_{arch} {problem}" for problem in found]
        result.kernels.setdefault(name, {})[f"sm_{arch}"] = Resources(
            **asdict(usage),
            dynamic_shared=dynamic,
            threads=threads,
            blocks_per_sm=blocks,
            occupancy=round(occupancy.occupancy(arch, threads, blocks), 3),
            main_loop=loop,
        )


def inspect(name: str, code: list[sass.Instruction]) -> tuple[list[str], dict[str, int] | None]:
    """What is wrong with a kernel's machine code, and the instructions of its main loop."""
    everywhere = sass.counts(code)
    found = [kind for kind in everywhere if kind.split(".")[0] in sass.FORBIDDEN]
    problems = [f"{name}: {everywhere[kind]} {kind}: local memory" for kind in found]
    if not name.startswith(ATTENTION):
        return problems, None
    loop = sass.counts(sass.main_loop(code))
    problems += [
        f"{name}: no {kind} in the main loop" for kind in REQUIRED_IN_LOOP if loop[kind] == 0
    ]
    return problems, {kind: loop[kind] for kind in (*REQUIRED_IN_LOOP, "BAR")}
