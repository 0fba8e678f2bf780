"""The gate on registers, spills and machine code: it holds, and it catches what it should."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tools.cuda_toolkit import DEFAULT_ARCHS, BuildError, CudaToolkit, find_toolkit
from tools.kernel_audit import __main__ as audit
from tools.kernel_audit import cubins, cuda_kernels, occupancy, page, sass, triton_kernels
from tools.kernel_audit.cuda_kernels import GATE, Resources
from tools.kernel_audit.gate import CannotMeasure, Measurement
from tools.native_build import CSRC

TABLE = GATE.committed()


@pytest.fixture(scope="module")
def toolkit() -> CudaToolkit:
    try:
        found = find_toolkit()
    except BuildError as error:
        pytest.skip(str(error))
    if missing := [arch for arch in DEFAULT_ARCHS if not found.knows(arch)]:
        pytest.skip(f"nvcc {found.version} does not compile for {', '.join(missing)}")
    return found


# ---- the gate ----


def test_one_architecture(toolkit, capsys):
    status = audit.main(["--check", "--of", "cuda", "--arch", "90a"])
    assert status == 0, capsys.readouterr().out


@pytest.mark.slow
def test_every_architecture(toolkit, capsys):
    status = audit.main(["--check", "--of", "cuda"])
    assert status == 0, capsys.readouterr().out


# ---- the committed table ----


def test_table_has_every_kernel_on_every_architecture():
    declared = set()
    for header in (CSRC / "include" / "rdkernels" / "kernels").rglob("*.cuh"):
        text = re.sub(r"//.*", "", header.read_text())
        declared |= set(
            re.findall(r"__global__\s+void\s+__launch_bounds__\([^)]*\)\s+(\w+)\(", text)
        )
    assert declared == {name.split("<")[0] for name in TABLE["kernels"]}
    for name, by_arch in TABLE["kernels"].items():
        assert list(by_arch) == [f"sm_{arch}" for arch in DEFAULT_ARCHS], name


def test_table_is_sound():
    for name, by_arch in TABLE["kernels"].items():
        for arch, r in by_arch.items():
            assert r["spill_stores"] == r["spill_loads"] == r["stack"] == 0, (name, arch)
            shared = r["static_shared"] + r["dynamic_shared"]
            blocks = occupancy.blocks_per_sm(arch, r["threads"], r["registers"], shared)
            assert r["blocks_per_sm"] == blocks > 0, (name, arch)
    assert list(TABLE["kernels"]) == sorted(TABLE["kernels"])


@pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
@pytest.mark.parametrize("warps_m", [1, 4])
def test_main_loops_do_the_products_of_one_tile(head_dim, warps_m):
    """Counted from the sizes: nothing unrolled twice, nothing left outside of the loop."""
    columns = 64 // (4 // warps_m)  # positions of the tile that are one warp's
    products = 2 * (head_dim // 16) * (columns // 8)  # m16n8k16, of Q K and of P V
    copies = 2 * 64 * head_dim * 2 // 16 // 128  # K and V, 16 bytes each, 128 threads
    for dtype in ("bf16", "fp16"):
        for r in TABLE["kernels"][
            f"recurrent_attention_kernel<{dtype}, {head_dim}, {warps_m}>"
        ].values():
            loop = r["main_loop"]
            assert loop["HMMA"] == products
            assert loop["LDSM"] == products // 2  # x4: two products' worth of K or V each
            assert loop["LDGSTS.128"] == copies
            assert loop["BAR"] == 1


def test_page_shows_the_table():
    assert page.current_section() == page.section(TABLE), (
        "docs/kernels.md is stale: python -m tools.kernel_audit --update"
    )


# ---- what it would catch ----

FINE = Resources(
    registers=100,
    stack=0,
    spill_stores=0,
    spill_loads=0,
    static_shared=0,
    dynamic_shared=0,
    threads=128,
    blocks_per_sm=4,
    occupancy=0.25,
)


def problems_of(now: Resources, nvcc: str = "13.0", known: Resources = FINE) -> list[str]:
    measured = Measurement("13.0", ("sm_90a",), {"k": {"sm_90a": now}})
    committed = Measurement(nvcc, ("sm_90a",), {"k": {"sm_90a": known}})
    return GATE.regressions(measured, json.loads(GATE.to_json(committed)))


def test_the_same_or_better_is_fine():
    assert problems_of(FINE) == []
    assert problems_of(replace(FINE, registers=90, blocks_per_sm=5)) == []


@pytest.mark.parametrize(
    "change, words",
    [
        ({"registers": 101}, "101 registers, 100 committed"),
        ({"blocks_per_sm": 3}, "3 blocks per SM, 4 committed"),
        ({"blocks_per_sm": 0}, "does not fit"),
        ({"spill_stores": 4}, "spill stores: 4 bytes"),
        ({"spill_loads": 8}, "spill loads: 8 bytes"),
        ({"stack": 16}, "stack: 16 bytes"),
    ],
    ids=str,
)
def test_worse_is_reported(change, words):
    reported = problems_of(replace(FINE, **change))
    assert any(words in line and line.startswith("sm_90a k: ") for line in reported), reported


def test_another_compiler_is_held_to_spills_alone():
    assert problems_of(replace(FINE, registers=128, blocks_per_sm=3), nvcc="12.8") == []
    assert problems_of(replace(FINE, spill_loads=4), nvcc="12.8")


def test_new_and_vanished_kernels_are_reported():
    measured = Measurement("13.0", ("sm_90a",), {"new": {"sm_90a": FINE}})
    table = {"nvcc": "13.0", "kernels": {"old": {"sm_90a": {}, "sm_80": {}}}}
    assert any("new: not in" in line for line in GATE.regressions(measured, table))
    assert [line.split(":")[0] for line in GATE.vanished(measured, table)] == ["sm_90a old"]


SPILLING = """
__global__ void __launch_bounds__(32) spilling_kernel(const int* in, int* out, int steps) {
  int values[64] = {};
  for (int i = 0; i < steps; ++i) values[in[i] & 63] += in[i + threadIdx.x];
  for (int i = 0; i < 64; ++i) out[i * 32 + threadIdx.x] = values[i];
}
"""


def test_local_memory_is_found_in_real_code(toolkit, tmp_path):
    """A run-time index into a local array: a stack frame, and STL and LDL in the machine code."""
    source = tmp_path / "spilling.cu"
    source.write_text(SPILLING)
    flags = ["-gencode=arch=compute_90a,code=sm_90a", "-cubin", "-Xptxas=-v"]
    unit = cubins.Compilation(
        source, [str(toolkit.nvcc), *flags], "90a", target=tmp_path / "spilling.cubin"
    )
    unit.build()
    usages = cubins.usages(unit)
    assert list(cubins.readable_names(usages).values()) == ["spilling_kernel"]
    assert next(iter(usages.values())).stack == 256
    if (cuobjdump := sass.find_cuobjdump()) is None:
        pytest.skip("no cuobjdump (pip install triton)")
    code = next(iter(sass.disassemble(cuobjdump, unit.target).values()))
    found, loop = cuda_kernels.inspect("spilling_kernel", code)
    assert loop is None and {line.split()[2][:3] for line in found} == {"LDL", "STL"}
    found, _ = cuda_kernels.inspect("recurrent_attention_kernel<bf16, 96, 1>", code)
    assert sum("in the main loop" in line for line in found) == 3


# ---- the command ----


def test_what_cannot_be_measured_is_said(monkeypatch, capsys):
    """Neither passes for fine: not one that is asked for, nor one of both."""

    def cannot(*arguments):
        raise CannotMeasure("a compiler is missing")

    monkeypatch.setattr(triton_kernels, "measure", cannot)
    assert audit.main(["--check", "--of", "triton"]) == 2
    measured = Measurement(TABLE["nvcc"], ("sm_90a",), {"k": {"sm_90a": FINE}})
    monkeypatch.setattr(cuda_kernels, "measure", lambda archs, jobs: measured)
    assert audit.main([]) == 2
    out, error = capsys.readouterr()
    assert "sm_90a" in out and error.count("triton: a compiler is missing") == 2


def test_report_in_json(monkeypatch, capsys):
    measured = Measurement(TABLE["nvcc"], ("sm_90a",), {"k": {"sm_90a": FINE}}, complete=False)
    monkeypatch.setattr(cuda_kernels, "measure", lambda archs, jobs: measured)
    assert audit.main(["--of", "cuda", "--check", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out).values()
    assert found["kernels"]["k"]["sm_90a"]["registers"] == FINE.registers
    (worse,) = found["worse"]
    assert worse.startswith("sm_90a k: not in kernel_resources.json; run --update")


def test_nothing_incomplete_becomes_the_table(monkeypatch, tmp_path, capsys):
    table = tmp_path / "table.json"
    monkeypatch.setattr(cuda_kernels, "GATE", replace(GATE, table=table))
    measured = Measurement("13.0", (), notes=["no cuobjdump"])
    monkeypatch.setattr(cuda_kernels, "measure", lambda archs, jobs: measured)
    assert audit.main(["--of", "cuda", "--update"]) == 1 and not table.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--update", "--arch", "90a"], "--update measures everything"),
        (["--huginn"], "--of triton"),
        (["--arch", "75"], "expected among 80, 86"),
        (["--of", "triton", "--arch", "86"], "for triton, got 86"),
    ],
    ids=str,
)
def test_malformed_arguments(arguments, words, capsys):
    with pytest.raises(SystemExit):
        audit.main(arguments)
    assert words in capsys.readouterr().err


# ---- its parts ----


@pytest.mark.parametrize("folder", ["lib", "lib64"])
def test_launches_are_linked_with_the_runtime_that_was_found(folder, tmp_path):
    """PyPI's toolkit has ``lib``, where nvcc does not look by itself."""
    runtime = tmp_path / folder / "libcudart_static.a"
    toolkit = CudaToolkit(tmp_path, tmp_path / "bin" / "nvcc", runtime, "13.0", frozenset())
    assert f"-L{runtime.parent}" in cubins.launches_program(toolkit).command()


@pytest.mark.parametrize(
    "arch, threads, registers, shared, blocks",
    [
        ("90a", 128, 168, 50176, 3),  # 12 warps of 168 registers
        ("86", 128, 168, 50176, 2),  # 100 KB of shared memory
        ("80", 1024, 32, 0, 2),  # 2048 threads
        ("86", 1024, 32, 0, 1),  # 1536 threads
        ("89", 32, 16, 0, 24),  # blocks
        ("100a", 512, 65, 0, 1),  # 72 registers a thread after rounding: 28 warps, not 32
        ("80", 352, 40, 0, 4),  # 11 warps take the registers of 12: 51 // 12
        ("86", 128, 32, 99 * 1024, 1),
        ("86", 128, 32, 99 * 1024 + 1, 0),  # more than a block may have
        ("90a", 128, 32, 0, 16),
    ],
)
def test_blocks_per_sm(arch, threads, registers, shared, blocks):
    assert occupancy.blocks_per_sm(arch, threads, registers, shared) == blocks


def test_ptxas_output(tmp_path):
    """Spills of a function that was not inlined count for the kernel that calls it."""
    unit = cubins.Compilation(Path("x.cu"), [], "90a", target=tmp_path / "x.cubin")
    unit.log.write_text(
        "ptxas info    : 0 bytes gmem\n"
        "ptxas info    : Compiling entry function '_Z1av' for 'sm_90a'\n"
        "ptxas info    : Function properties for _Z1av\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 40 registers, used 1 barriers, 64 bytes smem\n"
        "ptxas info    : Compiling entry function '_Z1bv' for 'sm_90a'\n"
        "ptxas info    : Function properties for _Z1bv\n"
        "    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Function properties for _Z6helperv\n"
        "    16 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 0 barriers\n"
    )
    assert cubins.usages(unit) == {
        "_Z1av": cubins.Usage(40, 0, 0, 0, 64),
        "_Z1bv": cubins.Usage(255, 24, 4, 12, 0),
    }


def test_main_loop_is_the_smallest_with_products():
    def code(*lines: str) -> list[sass.Instruction]:
        parts = (line.partition(" ") for line in lines)
        return [sass.Instruction(16 * i, name, rest) for i, (name, _, rest) in enumerate(parts)]

    listing = code(
        "HMMA.16816.F32 R0",  # 0x00, before any loop
        "LDG.E.128 R4",  # 0x10, outer loop
        "HMMA.16816.F32 R0",  # 0x20, inner loop
        "LDGSTS.E.BYPASS.128 [R2]",  # 0x30
        "BRA 0x20",  # 0x40
        "STG.E R1",  # 0x50
        "BRA 0x10",  # 0x60
        "STL [R1]",  # 0x70, a loop without products
        "BRA 0x70",  # 0x80
        "BRA 0x90",  # 0x90, the trap behind every kernel
    )
    loop = sass.main_loop(listing)
    assert (loop[0].address, loop[-1].address) == (0x20, 0x40)
    assert sass.counts(loop) == {"HMMA": 1, "LDGSTS.128": 1, "BRA": 1}
    assert sass.main_loop(listing[-3:]) == []
