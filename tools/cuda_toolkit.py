"""Finds the CUDA toolkit and decides which GPU architectures to compile for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_LIST = Path(__file__).resolve().with_name("cuda_architectures.txt")
# "80", ..., "90a", oldest first.
DEFAULT_ARCHS = tuple(line for line in _LIST.read_text().splitlines() if line[:1].isdigit())


class BuildError(Exception):
    """The build cannot go on; the message says what to do about it."""


@dataclass(frozen=True)
class CudaToolkit:
    root: Path
    nvcc: Path
    cudart_static: Path
    version: str  # "13.0"
    known: frozenset[str]  # virtual architectures that this nvcc compiles for: {"80", "86", ...}

    def knows(self, number: str) -> bool:
        return number.rstrip("af") in self.known


@dataclass(frozen=True)
class Arch:
    """A GPU architecture: machine code for ``number`` ("90a"), PTX for later GPUs, or both."""

    number: str
    machine_code: bool = True
    ptx: bool = False

    def __str__(self) -> str:
        parts = [f"sm_{self.number}"] * self.machine_code + [f"compute_{self.number}"] * self.ptx
        return "+".join(parts)

    def nvcc_flags(self) -> list[str]:
        virtual = f"compute_{self.number}"
        codes = [f"sm_{self.number}"] * self.machine_code + [virtual] * self.ptx
        return [f"-gencode=arch={virtual},code={code}" for code in codes]


def find_toolkit() -> CudaToolkit:
    """The first complete toolkit among ``CUDA_HOME``, ``CUDA_PATH``, nvcc on PATH, /usr/local/cuda.

    Raises :class:`BuildError` saying what each candidate lacks.
    """
    named = {name: os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")}
    candidates = {f"{name}={value}": Path(value) for name, value in named.items() if value}
    if not candidates:  # a toolkit that is named is meant: others are not tried behind its back
        on_path = shutil.which("nvcc")
        if on_path:
            candidates[f"nvcc on PATH ({on_path})"] = _root_of(on_path)
        candidates["/usr/local/cuda"] = Path("/usr/local/cuda")
    problems = []
    for origin, root in candidates.items():
        problem = _what_lacks(root)
        if problem is None:
            return _describe(root)
        problems.append(f"{origin}: {problem}")
    raise BuildError("no CUDA toolkit: " + "; ".join(problems))


def _root_of(nvcc: str) -> Path:
    """The toolkit of an nvcc, which may be a link or a wrapper script: ask nvcc itself."""
    told = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", "-c", "/dev/null", "-o", "/dev/null"],
        capture_output=True,
        text=True,
    )
    top = re.search(r"^#\$ TOP=(.+)$", told.stderr, re.MULTILINE)
    return Path(top.group(1)).resolve() if top else Path(nvcc).resolve().parent.parent


def _cudart_static(root: Path) -> Path | None:
    folders = ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")
    files = (root / folder / "libcudart_static.a" for folder in folders)
    return next((file for file in files if file.exists()), None)


def _what_lacks(root: Path) -> str | None:
    if not (root / "bin" / "nvcc").exists():
        return f"{root} has no bin/nvcc"
    headers = [root / "include", *root.glob("targets/*/include")]
    if not any((folder / "cuda_runtime.h").exists() for folder in headers):
        return f"{root} has no include/cuda_runtime.h"
    return None if _cudart_static(root) else f"{root} has no libcudart_static.a"


def _describe(root: Path) -> CudaToolkit:
    nvcc = root / "bin" / "nvcc"

    def ask(option: str) -> str:
        return subprocess.run([nvcc, option], capture_output=True, text=True, check=True).stdout

    release = re.search(r"release (\d+\.\d+)", ask("--version"))
    known = re.findall(r"compute_(\d+)", ask("--list-gpu-arch"))
    if release is None or not known:
        raise BuildError(f"{nvcc} does not say its version and architectures")
    static = _cudart_static(root)
    assert static is not None
    return CudaToolkit(root, nvcc, static, release.group(1), frozenset(known))


def choose_archs(arch_list: str, toolkit: CudaToolkit) -> list[Arch]:
    """Architectures of ``TORCH_CUDA_ARCH_LIST`` ("8.0;9.0a+PTX"), else all defaults nvcc knows."""
    if arch_list.strip():
        return [_parse(item, toolkit) for item in re.split(r"[;,\s]+", arch_list.strip())]
    numbers = [number for number in DEFAULT_ARCHS if toolkit.knows(number)]
    if not numbers:
        raise BuildError(f"nvcc {toolkit.version} knows none of sm_{', sm_'.join(DEFAULT_ARCHS)}")
    # PTX of "90a" runs on 9.0 alone; that of plain "90" runs on everything later too.
    newest = Arch(numbers[-1].rstrip("a"), machine_code=False, ptx=True)
    return [*(Arch(number) for number in numbers), newest]


def _parse(item: str, toolkit: CudaToolkit) -> Arch:
    match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", item)
    if match is None:
        raise BuildError(f"TORCH_CUDA_ARCH_LIST: expected items like 8.0 or 9.0a+PTX, got {item!r}")
    number = match.group(1) + match.group(2) + match.group(3)
    if not toolkit.knows(number):
        known = ", ".join(sorted(toolkit.known, key=int))
        raise BuildError(f"TORCH_CUDA_ARCH_LIST: nvcc {toolkit.version} knows {known}, not {item}")
    return Arch(number, ptx=match.group(4) is not None)
