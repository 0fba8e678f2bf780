"""Compiles and links the native extension; used by setup.py.

Three kinds of sources, all found by glob, so that a new op adds files and edits nothing here:

=====================  =====================  ======================================
``csrc/cpu/*.cpp``     torch-free             CPU kernels, one file per op
``csrc/cuda/*.cu``     torch-free             CUDA kernels; skipped without a toolkit
``csrc/binding/*.cpp`` torch stable ABI only  argument checks and registration
=====================  =====================  ======================================

torch's own BuildExtension is not used: it insists on a toolkit that matches torch's CUDA version,
which code that shares nothing with torch's CUDA libraries does not need, and without ninja it
compiles one file at a time.

Every environment variable that matters is read in :class:`Settings`.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tools.cuda_toolkit import BuildError, CudaToolkit, choose_archs, find_toolkit

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
OBJECTS = ROOT / "build" / "native"  # object files, kept between builds
TORCH_TARGET = "0x020a000000000000"  # torch 2.10: the oldest torch that the extension loads in
MINIMUM_TORCH = (2, 10)
CXX_FLAGS = [
    *("-O3", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
    *("-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"),  # so that loops vectorise
]
NVCC_FLAGS = [
    *("-O3", "-std=c++17", "-lineinfo", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall"),
    *("-Xfatbin=-compress-all", "--expt-relaxed-constexpr"),
]
GIB_PER_JOB = 2  # what one nvcc or g++ process takes at worst


def flag(name: str) -> bool:
    """An on/off environment variable; anything but 0, 1 or empty is refused by name."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise BuildError(f"{name}: expected 0 or 1, got {value!r}")
    return value == "1"


def default_jobs() -> int:
    """One job per core that this process may use, but no more than free memory allows."""
    cores = len(os.sched_getaffinity(0))
    free_kib = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    gib = int(free_kib.group(1)) / 2**20 if free_kib else GIB_PER_JOB * cores
    return max(1, min(cores, int(gib / GIB_PER_JOB)))


@dataclass
class Settings:
    """What the environment asks for."""

    skip_native: bool = field(default_factory=lambda: flag("RDKERNELS_SKIP_NATIVE"))
    skip_cuda: bool = field(default_factory=lambda: flag("RDKERNELS_SKIP_CUDA"))
    force_cuda: bool = field(default_factory=lambda: flag("RDKERNELS_FORCE_CUDA"))
    arch_list: str = field(default_factory=lambda: os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    jobs: int = 0

    def __post_init__(self) -> None:
        if self.force_cuda and (self.skip_cuda or self.skip_native):
            raise BuildError("RDKERNELS_FORCE_CUDA=1 contradicts RDKERNELS_SKIP_CUDA/NATIVE=1")
        jobs = os.environ.get("MAX_JOBS", "")
        if jobs and not (jobs.isdigit() and int(jobs) > 0):
            raise BuildError(f"MAX_JOBS: expected a positive number, got {jobs!r}")
        self.jobs = int(jobs) if jobs else default_jobs()


def find_compiler() -> list[str]:
    """The C++ compiler as a command: ``CXX``, else the usual names."""
    wanted = os.environ.get("CXX", "")
    for candidate in [wanted] if wanted else ["g++", "c++", "clang++"]:
        command = shlex.split(candidate)
        if shutil.which(command[0]):
            return command
    raise BuildError(
        f"no C++ compiler ({wanted or 'g++, c++ or clang++'} is not on PATH). Install one (Debian: "
        "apt install g++), or set RDKERNELS_SKIP_NATIVE=1 for a pure Python install, which is "
        "complete but slower."
    )


def torch_paths() -> tuple[Path, Path, str]:
    """(include folder, library folder, version) of the torch to build against."""
    try:
        import torch
    except ImportError as error:
        raise BuildError(
            f"torch cannot be imported ({error}). Install torch>=2.10 first and build with "
            "`pip install --no-build-isolation .`, or set RDKERNELS_SKIP_NATIVE=1."
        ) from error
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < MINIMUM_TORCH:
        raise BuildError(f"torch: expected 2.10 or newer, got {torch.__version__}")
    root = Path(torch.__file__).parent
    return root / "include", root / "lib", torch.__version__


@contextmanager
def build_lock():
    """Two builds in one tree take turns."""
    OBJECTS.mkdir(parents=True, exist_ok=True)
    with open(OBJECTS / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(command: list[str], hint: str = "") -> str:
    """Run a tool; on failure raise with the whole command and what it said."""
    result = subprocess.run(command, capture_output=True, text=True)
    output = result.stdout + result.stderr
    if result.returncode != 0:
        raise BuildError(f"{shlex.join(command)}\n{output}\n{hint}")
    return output


@dataclass
class Unit:
    """One source file and the command that compiles it."""

    source: Path
    compile: list[str]
    variant: str  # objects with and without CUDA are kept side by side
    hint: str = ""

    @property
    def object(self) -> Path:
        name = self.source.relative_to(CSRC)
        return OBJECTS / self.variant / name.with_name(name.name + ".o")

    def command(self) -> list[str]:
        dependencies = ["-MD", "-MF", str(self.object.with_suffix(".d"))]
        return [*self.compile, *dependencies, "-c", str(self.source), "-o", str(self.object)]

    def is_current(self) -> bool:
        """Built by this very command, and no file it read has changed since."""
        recorded, dependencies = self.object.with_suffix(".cmd"), self.object.with_suffix(".d")
        if not (self.object.exists() and recorded.exists() and dependencies.exists()):
            return False
        if recorded.read_text() != shlex.join(self.command()):
            return False
        built = self.object.stat().st_mtime
        names = dependencies.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        return all(Path(name).exists() and Path(name).stat().st_mtime <= built for name in names)

    def build(self) -> None:
        if self.is_current():
            return
        self.object.parent.mkdir(parents=True, exist_ok=True)
        recorded = self.object.with_suffix(".cmd")
        recorded.unlink(missing_ok=True)
        warnings = run(self.command(), self.hint).strip()
        recorded.write_text(shlex.join(self.command()))
        print(f"compiled {self.source.relative_to(ROOT)}", flush=True)
        if warnings:
            print(warnings, flush=True)


def build(target: Path, version: str, settings: Settings, say: Callable[[str], None]) -> None:
    """Compile what is stale and link the extension to ``target``."""
    if not sys.platform.startswith("linux"):
        raise BuildError("the native extension builds on Linux; set RDKERNELS_SKIP_NATIVE=1 here")
    compiler = find_compiler()
    torch_include, torch_lib, torch_version = torch_paths()
    toolkit = _toolkit(settings, say)
    archs = choose_archs(settings.arch_list, toolkit) if toolkit else []
    say(f"CPU kernels for {platform.machine()}, torch {torch_version}, {settings.jobs} jobs")
    say(f"CUDA {toolkit.version}: {', '.join(map(str, archs))}" if toolkit else "no CUDA kernels")
    info = {
        "version": version,
        "torch": torch_version,
        "compiler": run([*compiler, "--version"]).splitlines()[0],
        "cuda_toolkit": toolkit.version if toolkit else None,
        "cuda_archs": [str(arch) for arch in archs],
    }
    units = _units(compiler, torch_include, toolkit, archs, info)
    with build_lock():
        with ThreadPoolExecutor(settings.jobs) as pool:
            list(pool.map(Unit.build, units))
        _link(target, compiler, units, torch_lib, toolkit)


def _toolkit(settings: Settings, say: Callable[[str], None]) -> CudaToolkit | None:
    if settings.skip_cuda:
        say("RDKERNELS_SKIP_CUDA=1")
        return None
    try:
        return find_toolkit()
    except BuildError as error:
        if settings.force_cuda:
            raise BuildError(f"RDKERNELS_FORCE_CUDA=1, but {error}") from error
        say(str(error))
        return None


def _units(
    compiler: list[str],
    torch_include: Path,
    toolkit: CudaToolkit | None,
    archs: list,
    info: dict[str, object],
) -> list[Unit]:
    include = f"-I{CSRC / 'include'}"
    extra = shlex.split(os.environ.get("CXXFLAGS", ""))
    cpu = [*compiler, *CXX_FLAGS, *extra, include]
    binding = [*cpu, "-isystem", str(torch_include), f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
    if toolkit:
        binding.append("-DRDK_WITH_CUDA")
    variant = "cuda" if toolkit else "cpu"
    units = [Unit(source, cpu, variant) for source in sorted(CSRC.glob("cpu/*.cpp"))]
    for source in sorted(CSRC.glob("binding/*.cpp")):
        # A JSON text, quoted twice: once as JSON, once as a C++ string literal.
        told = source.name == "module.cpp"
        about = [f"-DRDK_BUILD_INFO={json.dumps(json.dumps(info))}"] if told else []
        units.append(Unit(source, [*binding, *about], variant))
    if toolkit:
        host = ["-ccbin", compiler[0]] if "CXX" in os.environ else []
        codes = [code for arch in archs for code in arch.nvcc_flags()]
        hint = "RDKERNELS_SKIP_CUDA=1 builds the CPU kernels only."
        cuda = [str(toolkit.nvcc), *NVCC_FLAGS, *host, *codes, include]
        units += [Unit(source, cuda, variant, hint) for source in sorted(CSRC.glob("cuda/*.cu"))]
    slowest_first = {".cu": 0, ".cpp": 1}
    return sorted(units, key=lambda unit: slowest_first[unit.source.suffix])


def _link(
    target: Path,
    compiler: list[str],
    units: list[Unit],
    torch_lib: Path,
    toolkit: CudaToolkit | None,
) -> None:
    """Link to a new file and move it over the old one: a process that has it mapped keeps it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".new")
    # libtorch_cpu is named as needed; `import torch` has loaded it before the extension is.
    libraries = [f"-L{torch_lib}", "-ltorch_cpu"]
    if toolkit:
        # A static CUDA runtime of our own: independent of the version that torch brings.
        libraries += [str(toolkit.cudart_static), "-lrt", "-ldl", "-lpthread"]
    objects = [str(unit.object) for unit in units]
    flags = ["-Wl,--exclude-libs,ALL", *shlex.split(os.environ.get("LDFLAGS", ""))]
    run([*compiler, "-shared", *objects, *libraries, *flags, "-o", str(fresh)])
    fresh.replace(target)
