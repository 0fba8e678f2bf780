"""Registers, spills and shared memory of every Triton kernel, without a GPU.

    python -m bench.triton_resources            # print what the kernels take now
    python -m bench.triton_resources --check    # fail where that is worse than the committed table
    python -m bench.triton_resources --update   # rewrite the table

Needs triton, which brings its own ptxas and cuobjdump. The committed table is
bench/triton_resources.json. --check fails on

* a stack, or local memory in the machine code (LDL, STL): a kernel keeps variables in memory;
* more registers or shared memory than committed;
* a kernel that is not in the table, or one in the table that is no longer launched;
* an attention kernel in 16 bits without tensor-core products.

Registers and shared memory are compared only with the triton release that the table was made with:
another one compiles differently.

Exit status: 0 fine, 1 worse than committed, 2 nothing could be measured (it says why).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import sass
from rdkernels.backends.triton import interpreted

TABLE = Path(__file__).with_suffix(".json")
SCHEMA = 1
ARCHS = (80, 90, 100)

_USAGE = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+)")
_TENSOR_CORES = ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA")  # sm_80, sm_90, sm_100


class CannotMeasure(Exception):
    pass


@dataclass(frozen=True)
class Resources:
    """One kernel on one architecture. ``stack`` and ``shared`` in bytes, the rest are counts."""

    registers: int
    stack: int
    local_accesses: int  # LDL and STL in the machine code
    shared: int
    threads: int
    tensor_core_products: int  # instructions in the machine code


Table = dict[str, dict[str, Resources]]  # by kernel variant and "sm_90"


def measure(archs: tuple[int, ...], huginn_only: bool = False) -> Table:
    """Compile everything that the provider launches and look at it."""
    if importlib.util.find_spec("triton") is None:
        raise CannotMeasure("triton is not installed")
    if interpreted():
        raise CannotMeasure("TRITON_INTERPRET is set: nothing is compiled")
    cuobjdump = sass.find_cuobjdump()
    if cuobjdump is None:
        raise CannotMeasure("no cuobjdump; triton for Linux has one")
    from bench.triton_launches import compile_only, huginn_launches, other_launches

    variants = huginn_launches() | ({} if huginn_only else other_launches())
    table: Table = {}
    for arch in archs:
        for variant, run in variants.items():
            with compile_only(arch) as launches:
                run()
            for kernel, compiled in launches:
                name = f"{kernel}<{variant}>"
                table.setdefault(name, {})[f"sm_{arch}"] = _resources(cuobjdump, compiled)
    return dict(sorted(table.items()))


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


def problems(now: Table, committed: dict, release: str) -> list[str]:
    """In words, what is wrong with ``now`` by itself, and what is worse than committed."""
    found = []
    for name, by_arch in now.items():
        for arch, r in by_arch.items():
            where = f"{arch} {name}"
            found += [
                f"{where}: {field.replace('_', ' ')}: {getattr(r, field)}"
                for field in ("stack", "local_accesses")
                if getattr(r, field) > 0
            ]
            products = name.startswith("recurrent_attention_kernel<") and "fp32" not in name
            if products and r.tensor_core_products == 0:
                found.append(f"{where}: no tensor-core products")
            known = committed["kernels"].get(name, {}).get(arch)
            if known is None:
                found.append(f"{where}: not in {TABLE.name}; run --update and review the change")
            elif committed["triton"] == release:
                found += [
                    f"{where}: {getattr(r, field)} {what}, {known[field]} committed"
                    for field, what in (("registers", "registers"), ("shared", "bytes shared"))
                    if getattr(r, field) > known[field]
                ]
    return found


def vanished(now: Table, committed: dict) -> list[str]:
    """Committed kernels that are no longer launched: the table is stale."""
    return [
        f"{name}: in {TABLE.name}, but no longer launched; run --update"
        for name in committed["kernels"]
        if name not in now
    ]


def to_json(now: Table, release: str) -> str:
    """The committed form: one kernel and architecture per line."""
    kernels = [
        f'  "{name}": {{\n'
        + ",\n".join(f'   "{arch}": {json.dumps(asdict(r))}' for arch, r in by_arch.items())
        + "\n  }"
        for name, by_arch in now.items()
    ]
    body = ",\n".join(kernels)
    return f'{{\n "schema": {SCHEMA},\n "triton": "{release}",\n "kernels": {{\n{body}\n }}\n}}\n'


def show(now: Table) -> None:
    row = "{:62} {:7} {:>4} {:>5} {:>5} {:>7} {:>7} {:>6}"
    print(row.format("kernel", "arch", "regs", "stack", "local", "shared", "threads", "tensor"))
    for name, by_arch in now.items():
        for arch, r in by_arch.items():
            print(row.format(name, arch, *asdict(r).values()))


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.triton_resources",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="compare with the committed table")
    what.add_argument("--update", action="store_true", help="rewrite the committed table")
    parser.add_argument("--arch", action="append", type=int, choices=ARCHS, help="these only")
    parser.add_argument("--huginn", action="store_true", help="variants of Huginn's sizes only")
    options = parser.parse_args(arguments)
    if options.update and (options.arch or options.huginn):
        parser.error("--update measures everything; leave --arch and --huginn out")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    archs = tuple(options.arch or ARCHS)
    try:
        now = measure(archs, options.huginn)
    except CannotMeasure as error:
        print(f"triton_resources: {error}", file=sys.stderr)
        return 2
    import triton

    release = triton.__version__
    if options.update:
        TABLE.write_text(to_json(now, release))
        print(f"wrote {TABLE.name}")
        return 0
    if not options.check:
        show(now)
        return 0
    committed = json.loads(TABLE.read_text())
    if committed["triton"] != release:
        print(f"made with triton {committed['triton']}, this is {release}: sizes not compared")
    found = problems(now, committed, release)
    if not options.huginn:
        found += vanished(now, committed)
    print("\n".join(found) or f"{len(now)} kernels on {len(archs)} architectures: fine")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
