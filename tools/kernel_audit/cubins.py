"""Compiles the CUDA kernels for one architecture each, with the build's own flags, and reads what
ptxas says about them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools.cuda_toolkit import BuildError, CudaToolkit
from tools.native_build import CSRC, NVCC_FLAGS, OBJECTS, Unit, find_compiler

LAUNCHES = Path(__file__).with_name("kernel_launches.cu")

_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_STATIC_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Usage:
    """What ptxas gave one kernel; bytes, except for the registers of a thread."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    static_shared: int


@dataclass
class Compilation(Unit):
    """One source compiled to ``target``; what the compiler says is kept beside it."""

    target: Path = Path()

    @property
    def object(self) -> Path:
        return self.target

    def command(self) -> list[str]:
        dependencies = ["-MD", "-MF", str(self.target.with_suffix(".d"))]
        return [*self.compile, *dependencies, str(self.source), "-o", str(self.target)]

    @property
    def log(self) -> Path:
        return self.target.with_suffix(".log")

    def build(self) -> None:
        """Compile unless that has been done by this command on these files."""
        if self.log.exists() and self.is_current():
            return
        self.target.parent.mkdir(parents=True, exist_ok=True)
        recorded = self.target.with_suffix(".cmd")
        recorded.unlink(missing_ok=True)
        done = subprocess.run(self.command(), capture_output=True, text=True)
        if done.returncode != 0:
            raise BuildError(f"{shlex.join(self.command())}\n{done.stdout}{done.stderr}")
        self.log.write_text(done.stdout + done.stderr)
        recorded.write_text(shlex.join(self.command()))


def compile_kernels(
    toolkit: CudaToolkit, archs: Iterable[str], jobs: int, sources: Iterable[Path] | None = None
) -> dict[str, list[Compilation]]:
    """Every ``csrc/cuda/*.cu`` (or ``sources``) as a cubin for every arch ("90a")."""
    sources = sorted(CSRC.glob("cuda/*.cu") if sources is None else sources)
    units = {arch: [_cubin(toolkit, source, arch) for source in sources] for arch in archs}
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(Compilation.build, (unit for group in units.values() for unit in group)))
    return units


def _cubin(toolkit: CudaToolkit, source: Path, arch: str) -> Compilation:
    code = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    command = [*_nvcc(toolkit), code, "-cubin", "-Xptxas=-v"]
    return Compilation(
        source, command, arch, target=OBJECTS / "cubin" / arch / f"{source.stem}.cubin"
    )


def _nvcc(toolkit: CudaToolkit) -> list[str]:
    return [str(toolkit.nvcc), *NVCC_FLAGS, f"-I{CSRC / 'include'}"]


def usages(cubin: Compilation) -> dict[str, Usage]:
    """Resources of each kernel in a compiled cubin, by mangled name."""
    found: dict[str, Usage] = {}
    for part in re.split(r"(?=ptxas info\s*: Compiling entry function)", cubin.log.read_text()):
        entry = _ENTRY.search(part)
        if entry is None:
            continue
        used, shared = _USED.search(part), _STATIC_SHARED.search(part)
        # Functions that are called and not inlined have lines of their own: the sum counts them.
        memory = [sum(map(int, column)) for column in zip(*_MEMORY.findall(part), strict=True)]
        if used is None or len(memory) != 3:
            raise BuildError(f"{cubin.log}: no registers or no spills for {entry.group(1)}")
        static_shared = int(shared.group(1)) if shared else 0
        found[entry.group(1)] = Usage(int(used.group(1)), *memory, static_shared)
    return found


def readable_names(mangled: Iterable[str]) -> dict[str, str]:
    """``{"_ZN3rdk15rms_norm_kernelI...": "rms_norm_kernel<bf16, 2, true>"}``."""
    mangled = list(mangled)
    tool = shutil.which("c++filt")
    if tool is None:
        raise BuildError("c++filt is not on PATH; it comes with the C++ compiler (binutils)")
    text = subprocess.run(
        [tool], input="\n".join(mangled), capture_output=True, text=True, check=True
    ).stdout

    def shorten(name: str) -> str:
        name = name.removeprefix("void ").split("(", 1)[0].replace("rdk::", "")
        return (
            name.replace("__nv_bfloat16", "bf16").replace("__half", "fp16").replace("float", "fp32")
        )

    return dict(zip(mangled, map(shorten, text.splitlines()), strict=True))


def launch_shapes(toolkit: CudaToolkit) -> list[tuple[str, int, int]]:
    """(kernel pattern, threads per block, bytes of dynamic shared memory), from the headers.

    Compiles and runs kernel_launches.cu, which is host code.
    """
    unit = launches_program(toolkit)
    unit.build()
    lines = subprocess.run([str(unit.target)], capture_output=True, text=True, check=True).stdout
    rows = (line.split("\t") for line in lines.splitlines())
    return [(pattern, int(threads), int(shared)) for pattern, threads, shared in rows]


def launches_program(toolkit: CudaToolkit) -> Compilation:
    """kernel_launches.cu as a program, against the runtime of the toolkit that was found.

    nvcc itself looks for that in ``lib64``, and PyPI's toolkit has ``lib``.
    """
    host = ["-ccbin", find_compiler()[0], "-gencode=arch=compute_90,code=sm_90", "-O0"]
    command = [*_nvcc(toolkit), *host, f"-L{toolkit.cudart_static.parent}"]
    return Compilation(LAUNCHES, command, "host", target=OBJECTS / "cubin" / "kernel_launches")
