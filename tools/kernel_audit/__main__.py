"""What the compilers made of every kernel: registers, spills, memory, machine code. No GPU needed.

    python -m tools.kernel_audit            # print what the kernels take now
    python -m tools.kernel_audit --check    # fail where that is worse than the committed tables
    python -m tools.kernel_audit --update   # rewrite the tables and their part of docs/kernels.md
    python -m tools.kernel_audit --of cuda --arch 90a --json   # some of them, as JSON

``--of cuda`` needs nvcc; its table is tools/kernel_audit/kernel_resources.json. ``--of triton``
needs triton; its table is tools/kernel_audit/triton_resources.json. --check fails on

* spills, a stack, or local memory in the machine code (LDL, STL): variables kept in memory;
* more registers, fewer blocks per SM (CUDA) or more shared memory (Triton) than committed;
* a kernel that is not in its table, or one in the table that is no longer compiled;
* an attention main loop of CUDA without tensor-core products (HMMA), matrix loads (LDSM) or 16-byte
  asynchronous copies (LDGSTS.128), a Triton attention kernel in 16 bits without such products.

The machine code of CUDA kernels is looked at where cuobjdump is found (in a toolkit, in the triton
package, or PyPI's nvidia-cuda-cuobjdump). Sizes are compared only with the compiler release that a
table was made with: another one allocates differently.

Exit status: 0 fine, 1 worse than committed, 2 something could not be measured (it says why).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from types import ModuleType

from tools.cuda_toolkit import BuildError
from tools.kernel_audit import cuda_kernels, triton_kernels
from tools.kernel_audit.gate import Measurement
from tools.kernel_audit.page import update_page

KINDS: dict[str, ModuleType] = {"cuda": cuda_kernels, "triton": triton_kernels}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.kernel_audit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="compare with the committed tables")
    what.add_argument("--update", action="store_true", help="rewrite the committed tables")
    parser.add_argument("--of", choices=tuple(KINDS), help="default: both")
    parser.add_argument("--arch", action="append", metavar="90a", help="these only (not --update)")
    parser.add_argument("--huginn", action="store_true", help="Triton: Huginn's sizes only")
    parser.add_argument("--json", action="store_true", help="what was found as JSON, to stdout")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time (default 2)")
    options = parser.parse_args(arguments)
    if options.update and (options.arch or options.huginn):
        parser.error("--update measures everything; leave --arch and --huginn out")
    options.kinds = [options.of] if options.of else list(KINDS)
    if options.huginn and options.kinds != ["triton"]:
        parser.error("--huginn: expected with --of triton")
    options.archs = {}
    for kind in options.kinds:
        known = KINDS[kind].ARCHS
        archs = [arch.removeprefix("sm_") for arch in options.arch or known]
        if unknown := [arch for arch in archs if arch not in known]:
            expected = f"expected among {', '.join(known)} for {kind}"
            parser.error(f"--arch: {expected}, got {', '.join(unknown)}")
        options.archs[kind] = archs
    return options


def measure(kind: str, options: argparse.Namespace) -> Measurement:
    if kind == "cuda":
        return cuda_kernels.measure(options.archs[kind], options.jobs)
    return triton_kernels.measure(options.archs[kind], options.huginn)


def show(kind: str, now: Measurement) -> None:
    columns = KINDS[kind].COLUMNS
    print(f"{'kernel':62} {'arch':8}" + "".join(f"{name:>{len(name) + 2}}" for name in columns))
    for name, by_arch in sorted(now.kernels.items()):
        for arch, resources in by_arch.items():
            cells = (f"{getattr(resources, c):>{len(c) + 2}}" for c in columns)
            print(f"{name:62} {arch:8}" + "".join(cells))


def check(kind: str, now: Measurement) -> list[str]:
    """In words, what is worse than the committed table."""
    gate = KINDS[kind].GATE
    committed = gate.committed()
    if not gate.is_comparable(now, committed):
        made = f"{gate.compiler} {committed[gate.compiler]}"
        say(f"{kind}: the table is of {made}, this is {now.release}: sizes not compared")
    return gate.regressions(now, committed) + gate.vanished(now, committed)


def update(kind: str, now: Measurement) -> list[str]:
    """Rewrite the table; returns why it was not, if so."""
    gate = KINDS[kind].GATE
    if refused := now.problems + now.notes:
        return refused
    gate.table.write_text(gate.to_json(now))
    if kind == "cuda":
        update_page(gate.committed())
    print(f"wrote {gate.table.name}")
    return []


def say(text: str) -> None:
    print(f"kernel_audit: {text}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    status, report = 0, {}
    for kind in options.kinds:
        try:
            now = measure(kind, options)
        except BuildError as error:
            say(f"{kind}: {error}")
            status = 2
            continue
        for note in now.notes:
            say(f"{kind}: {note}")
        act = check if options.check else update if options.update else None
        problems = act(kind, now) if act else []
        status = max(status, int(bool(problems)))
        report[kind] = asdict(now) | ({"worse": problems} if options.check else {})
        if options.json:
            continue
        if act is None:
            show(kind, now)
        elif problems:
            print("\n".join(problems))
        elif options.check:
            print(f"{kind}: {len(now.kernels)} kernels on {', '.join(now.archs)}: fine")
    if options.json:
        print(json.dumps(report))
    return status


if __name__ == "__main__":
    sys.exit(main())
