"""Registers, spills, shared memory and occupancy of every CUDA kernel, without a GPU.

    python -m bench.kernel_resources            # print what the kernels take now
    python -m bench.kernel_resources --check    # fail where that is worse than the committed table
    python -m bench.kernel_resources --update   # rewrite the table and its part of docs/kernels.md

Needs nvcc. The committed table is bench/kernel_resources.json. --check fails on

* spills or stack: a kernel keeps variables in memory;
* more registers, or fewer blocks per SM, than committed;
* a kernel that is not in the table;
* local memory in the machine code (LDL, STL), and an attention main loop without tensor-core
  products (HMMA), matrix loads (LDSM) or 16-byte asynchronous copies (LDGSTS.128).

Machine code is looked at where cuobjdump is found (in a toolkit, in the triton package, or PyPI's
nvidia-cuda-cuobjdump). Registers are compared only with the nvcc release that the table was made
with: another one allocates differently.

Exit status: 0 fine, 1 worse than committed, 2 nothing could be measured (it says why).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from bench import cubins, occupancy, sass
from bench.resources_page import update_page
from tools.cuda_toolkit import DEFAULT_ARCHS, BuildError, CudaToolkit, find_toolkit
from tools.native_build import ROOT

TABLE = ROOT / "bench" / "kernel_resources.json"
SCHEMA = 1
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


@dataclass
class Measurement:
    """All kernels on some architectures: ``kernels[name][arch]``, and what is wrong by itself."""

    nvcc: str
    archs: tuple[str, ...]
    kernels: dict[str, dict[str, Resources]]
    problems: list[str]
    disassembled: bool


def measure(toolkit: CudaToolkit, archs: Iterable[str], jobs: int) -> Measurement:
    """Compile everything for ``archs`` ("90a") and look at it."""
    shapes = cubins.launch_shapes(toolkit)
    cuobjdump = sass.find_cuobjdump()
    result = Measurement(
        toolkit.version, tuple(archs), kernels={}, problems=[], disassembled=bool(cuobjdump)
    )
    for arch, units in cubins.compile_kernels(toolkit, result.archs, jobs).items():
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
            result.problems.append(f"{name}: its launch is not in bench/kernel_launches.cu")
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


def regressions(now: Measurement, committed: dict) -> list[str]:
    """In words, everything about ``now`` that is worse than the committed table."""
    problems = list(now.problems)
    comparable = committed["nvcc"] == now.nvcc
    for name, by_arch in sorted(now.kernels.items()):
        for arch, r in by_arch.items():
            where = f"{arch} {name}"
            for field in ("spill_stores", "spill_loads", "stack"):
                if getattr(r, field) > 0:
                    problems.append(
                        f"{where}: {field.replace('_', ' ')}: {getattr(r, field)} bytes"
                    )
            if r.blocks_per_sm == 0:
                problems.append(f"{where}: does not fit an SM")
            known = committed["kernels"].get(name, {}).get(arch)
            if known is None:
                problems.append(f"{where}: not in {TABLE.name}; run --update and review the change")
            elif comparable:
                problems += _worse(where, r, known)
    return problems


def _worse(where: str, now: Resources, known: dict) -> list[str]:
    problems = []
    if now.registers > known["registers"]:
        problems.append(f"{where}: {now.registers} registers, {known['registers']} committed")
    if now.blocks_per_sm < known["blocks_per_sm"]:
        problems.append(
            f"{where}: {now.blocks_per_sm} blocks per SM, {known['blocks_per_sm']} committed"
        )
    return problems


def vanished(now: Measurement, committed: dict) -> list[str]:
    """Committed kernels that are no longer built: the table is stale."""
    archs = {f"sm_{arch}" for arch in now.archs}
    return [
        f"{arch} {name}: in {TABLE.name}, but no longer built; run --update"
        for name, by_arch in committed["kernels"].items()
        for arch in by_arch
        if arch in archs and arch not in now.kernels.get(name, {})
    ]


def to_json(now: Measurement) -> str:
    """The committed form: sorted, one kernel and architecture per line."""
    lines = []
    for name, by_arch in sorted(now.kernels.items()):
        records = [
            f'   "{arch}": '
            + json.dumps({key: value for key, value in asdict(r).items() if value is not None})
            for arch, r in sorted(by_arch.items(), key=lambda item: _arch_order(item[0]))
        ]
        lines.append(f'  "{name}": {{\n' + ",\n".join(records) + "\n  }")
    body = ",\n".join(lines)
    return f'{{\n "schema": {SCHEMA},\n "nvcc": "{now.nvcc}",\n "kernels": {{\n{body}\n }}\n}}\n'


def _arch_order(arch: str) -> int:
    return int(arch.removeprefix("sm_").rstrip("af"))


def show(now: Measurement) -> None:
    head = ("kernel", "arch", "regs", "spill", "shared", "blocks/SM", "warps")
    print("{:46} {:8} {:>4} {:>5} {:>7} {:>9} {:>5}".format(*head))
    for name, by_arch in sorted(now.kernels.items()):
        for arch, r in by_arch.items():
            spills, shared = r.spill_stores + r.spill_loads, r.static_shared + r.dynamic_shared
            print(
                f"{name:46} {arch:8} {r.registers:4} {spills:5} {shared:7} {r.blocks_per_sm:9} "
                f"{r.occupancy:5.0%}"
            )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernel_resources",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="compare with the committed table")
    what.add_argument("--update", action="store_true", help="rewrite the committed table")
    parser.add_argument("--arch", action="append", metavar="90a", help="these only (not --update)")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time (default 2)")
    options = parser.parse_args(arguments)
    if options.update and options.arch:
        parser.error("--update measures every architecture; leave --arch out")
    archs = [arch.removeprefix("sm_") for arch in options.arch or DEFAULT_ARCHS]
    if unknown := [arch for arch in archs if arch not in DEFAULT_ARCHS]:
        parser.error(f"--arch: expected among {', '.join(DEFAULT_ARCHS)}, got {', '.join(unknown)}")
    options.arch = archs
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        toolkit = find_toolkit()
        if old := [arch for arch in options.arch if not toolkit.knows(arch)]:
            raise BuildError(f"nvcc {toolkit.version} does not compile for sm_{', sm_'.join(old)}")
        now = measure(toolkit, options.arch, options.jobs)
    except BuildError as error:
        print(f"kernel_resources: {error}", file=sys.stderr)
        return 2
    if not now.disassembled:
        print("no cuobjdump (pip install triton): machine code not looked at", file=sys.stderr)
    if options.update:
        return _update(now)
    if not options.check:
        show(now)
        return 0
    committed = json.loads(TABLE.read_text())
    if committed["nvcc"] != now.nvcc:
        print(f"made with nvcc {committed['nvcc']}, this is {now.nvcc}: registers not compared")
    problems = regressions(now, committed) + vanished(now, committed)
    print(
        "\n".join(problems) or f"{len(now.kernels)} kernels on {len(now.archs)} architectures: fine"
    )
    return 1 if problems else 0


def _update(now: Measurement) -> int:
    if not now.disassembled or now.problems:
        print("\n".join(now.problems) or "--update needs cuobjdump", file=sys.stderr)
        return 1
    TABLE.write_text(to_json(now))
    update_page(json.loads(TABLE.read_text()))
    print(f"wrote {TABLE.relative_to(ROOT)} and its part of docs/kernels.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
