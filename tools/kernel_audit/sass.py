"""Machine code of the kernels: which instructions, and which of them in the main loop."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)([^;]*);")
_BRANCH_TARGET = re.compile(r"0x([0-9a-f]+)\s*$")
_WIDTHS = (".128", ".64")

# Local memory: what registers could not hold.
FORBIDDEN = ("LDL", "STL")


@dataclass(frozen=True)
class Instruction:
    address: int
    name: str  # with its modifiers: LDGSTS.E.BYPASS.128
    operands: str


def find_cuobjdump() -> Path | None:
    """cuobjdump of a toolkit, of triton, or of PyPI's nvidia-cuda-cuobjdump; None if none is."""
    if on_path := shutil.which("cuobjdump"):
        return Path(on_path)
    for package, inside in (("triton", "backends/nvidia/bin"), ("nvidia", "*/bin")):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for found in Path(folder).glob(f"{inside}/cuobjdump"):
                return found
    return None


def disassemble(cuobjdump: Path, cubin: Path) -> dict[str, list[Instruction]]:
    """Instructions of every kernel in ``cubin``, by mangled name."""
    text = subprocess.run(
        [str(cuobjdump), "-sass", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    functions: dict[str, list[Instruction]] = {}
    for line in text.splitlines():
        if match := _FUNCTION.match(line):
            current = functions.setdefault(match.group(1), [])
        elif match := _INSTRUCTION.match(line):
            address, name, operands = match.groups()
            current.append(Instruction(int(address, 16), name, operands.strip()))
    return functions


def main_loop(code: list[Instruction]) -> list[Instruction]:
    """The smallest loop with tensor-core instructions; empty if there is none."""
    loops = (body for body in _loops(code) if any(i.name.startswith("HMMA") for i in body))
    return min(loops, key=len, default=[])


def _loops(code: list[Instruction]) -> Iterator[list[Instruction]]:
    """The instructions from the target of each backward branch to the branch."""
    for branch in code:
        target = _BRANCH_TARGET.search(branch.operands)
        if branch.name.startswith("BRA") and target and int(target.group(1), 16) < branch.address:
            first = int(target.group(1), 16)
            yield [i for i in code if first <= i.address <= branch.address]


def counts(code: list[Instruction]) -> Counter[str]:
    """Instructions by kind and access width: ``HMMA``, ``LDSM``, ``LDGSTS.128``, ``LDG.64``, ..."""

    def kind(instruction: Instruction) -> str:
        name = instruction.name
        width = next((w for w in _WIDTHS if w in name), "")
        return name.split(".")[0] + width

    return Counter(kind(i) for i in code)
