"""rdkernels.diagnostics: the report is true, complete and plain."""

import json
import subprocess
import sys

import pytest
import torch
from rich.console import Console

import rdkernels
from rdkernels import diagnostics
from rdkernels.backends import native
from rdkernels.cli.ui.tables import environment_view, ops_view
from rdkernels.ops import OPS
from rdkernels.registry import choice


@pytest.fixture(autouse=True)
def no_forced_backend(monkeypatch):
    monkeypatch.delenv("RDKERNELS_BACKEND", raising=False)


def test_report_is_plain_json_with_the_versions():
    found = json.loads(json.dumps(diagnostics.report().to_json()))
    assert found["versions"]["rdkernels"] == rdkernels.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert [op["op"] for op in found["ops"]] == sorted(OPS) and found["forced_backend"] is None
    names = [provider["name"] for provider in found["providers"]]
    assert names == ["eager", "native CPU", "native CUDA", "triton"]


def test_each_missing_provider_says_why():
    for provider in diagnostics.report().providers:
        assert provider.available == bool(provider.ops)
        assert provider.available == (provider.reason is None)
        assert set(provider.ops).isdisjoint(provider.missing)
        if provider.available:
            assert set(provider.ops) | set(provider.missing) == set(OPS)


def test_eager_serves_everything():
    eager = diagnostics.report().providers[0]
    assert eager.ops == sorted(OPS) and not eager.missing


def test_native_cpu_agrees_with_the_loader():
    provider = diagnostics.report().providers[1]
    if native.load_error() is not None:
        assert not provider.available and provider.reason
    for op in provider.ops:
        assert native.reason(op, "cpu", torch.float32) is None


def test_loader_error_reaches_the_report(monkeypatch):
    monkeypatch.setattr(native, "reason", lambda op, device, dtype: "libnothing.so: not found")
    _, cpu, cuda, _ = diagnostics.report().providers
    assert not cpu.available and cpu.reason == "libnothing.so: not found"
    assert not cuda.available and cuda.reason == "libnothing.so: not found"


def test_cuda_kernels_without_a_gpu_are_not_available(monkeypatch):
    monkeypatch.setattr(native, "reason", lambda op, device, dtype: None)
    monkeypatch.setattr(diagnostics, "_gpus", lambda: ([], "no GPU today"))
    _, cpu, cuda, _ = diagnostics.report().providers
    assert cpu.available and set(cpu.ops) == set(OPS)
    assert not cuda.available and "no GPU today" in cuda.reason


def test_reasons_are_shown_once_for_all_their_ops(monkeypatch, capsys):
    why = {
        "swiglu": "not on Sundays",
        "rms_norm": "not on Sundays",
        "exit_update": "no such kernel",
    }
    monkeypatch.setattr(native, "reason", lambda op, device, dtype: why.get(op))
    Console(width=200).print(environment_view(diagnostics.report()))
    shown = capsys.readouterr().out
    assert "not on Sundays: rms_norm, swiglu" in shown and "no such kernel: exit_update" in shown


def shown_ops(capsys, **what):
    Console(width=200).print(ops_view(diagnostics.report(**what).ops))
    return capsys.readouterr().out


def line_of(op, shown):
    (line,) = (line for line in shown.splitlines() if line.startswith(op + " "))
    return line.split()[1:]


def test_ops_view_marks_who_serves_and_numbers_the_reasons(monkeypatch, capsys):
    """Two ops with one reason share a number, though each reason starts with its op's name."""
    why = {"swiglu": "swiglu is off", "rms_norm": "rms_norm is off", "exit_update": "too late"}
    monkeypatch.setattr(
        choice, "reason", lambda name, op, *_: why.get(op) if name == "native" else None
    )
    shown = shown_ops(capsys, device="cuda", dtype=torch.float16)
    assert "ops on cuda in float16" in shown and "No provider is forced" in shown
    assert line_of("exit_update", shown) == ["no", "[1]", "serves", "could"]
    assert line_of("rms_norm", shown) == ["no", "[2]", "serves", "could"]
    assert line_of("swiglu", shown) == ["no", "[2]", "serves", "could"]
    assert line_of("residual_norm", shown) == ["serves", "could", "could"]
    assert "[1] too late\n" in shown and "[2] is off\n" in shown and "[3]" not in shown


def test_ops_view_says_what_the_environment_forces(monkeypatch, capsys):
    monkeypatch.setenv("RDKERNELS_BACKEND", "native")
    monkeypatch.setattr(native, "reason", lambda op, *_: "no" if op == "swiglu" else None)
    shown = shown_ops(capsys)
    assert line_of("rms_norm", shown)[0] == "serves"
    assert line_of("swiglu", shown)[0] == "raises"
    assert f"Calls of 1 of {len(OPS)} ops raise" in shown
    assert "swiglu: no provider for torch.bfloat16 on cpu: native: no" in shown
    assert diagnostics.report().forced_backend == "native"
    monkeypatch.setenv("RDKERNELS_BACKEND", "cuda")
    shown = shown_ops(capsys)
    assert "RDKERNELS_BACKEND=cuda" in shown and "expected one of native, " in shown
    Console(width=200).print(environment_view(diagnostics.report()))
    assert "RDKERNELS_BACKEND" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["exit 3", "echo nothing useful"])
def test_broken_nvcc_is_no_version(tmp_path, monkeypatch, content):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\n{content}\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert diagnostics._nvcc_version() is None
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    assert diagnostics._nvcc_version() == "13.0"


def test_no_cuda_at_import():
    code = (
        "import torch, rdkernels, rdkernels.diagnostics as e, sys;"
        "sys.exit(torch.cuda.is_initialized() or 'triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_machine_is_described_by_what_the_system_says():
    found = json.loads(json.dumps(diagnostics.machine().to_json()))
    assert found["cpu"] and found["threads"] == torch.get_num_threads()
    assert found["cores"] >= 1 and found["memory_bytes"] > 2**28
    assert found["versions"] == diagnostics.report().versions
    build = native.build_info()
    assert found["compiler"] == build.get("compiler")
    assert found["instruction_set"] == build.get("cpu_capability", found["instruction_set"])
    assert found["system"].startswith(("Linux", "Darwin", "Windows"))


INTEL = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t: a b\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"


@pytest.mark.parametrize(
    ("cpuinfo", "brand", "processor", "name"),
    [
        (INTEL, None, "x86_64", "Some CPU @ 2 GHz"),
        (ARM, None, "", "aarch64 (implementer 0x41, part 0xd0c)"),
        (None, "Some M9", "arm", "Some M9"),  # macOS has no such file, but sysctl
        ("processor\t: 0\n", None, "riscv", "riscv"),
        (None, None, "", "aarch64"),
    ],
)
def test_the_processors_name(cpuinfo, brand, processor, name, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    monkeypatch.setattr(diagnostics, "_CPUINFO", file)
    monkeypatch.setattr(diagnostics, "_output", lambda *command: brand)
    monkeypatch.setattr(diagnostics.platform, "processor", lambda: processor)
    monkeypatch.setattr(diagnostics.platform, "machine", lambda: "aarch64")
    assert diagnostics._cpu_name() == name


def test_a_machine_that_tells_nothing_is_described_all_the_same(monkeypatch):
    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(diagnostics.os, "sysconf", unknown)
    monkeypatch.setattr(native, "build_info", dict)
    found = diagnostics.machine()
    assert found.memory_bytes is None and found.compiler is None
    assert found.instruction_set == torch.backends.cpu.get_cpu_capability()
