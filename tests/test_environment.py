"""rdkernels.environment: the report is true, complete and plain."""

import json
import subprocess
import sys

import pytest
import torch
from rich.console import Console

import rdkernels
from rdkernels import environment, ops  # noqa: F401  (ops defines the operators)
from rdkernels.backends import native
from rdkernels.ops._registry import OPS
from rdkernels.terminal import environment_view


def test_report_is_plain_json_with_the_versions():
    found = json.loads(json.dumps(environment.report().to_json()))
    assert found["versions"]["rdkernels"] == rdkernels.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    names = [provider["name"] for provider in found["providers"]]
    assert names == ["eager", "native CPU", "native CUDA", "triton"]


def test_each_missing_provider_says_why():
    for provider in environment.report().providers:
        assert provider.available == bool(provider.ops)
        assert provider.available == (provider.reason is None)
        assert set(provider.ops).isdisjoint(provider.missing)
        if provider.available:
            assert set(provider.ops) | set(provider.missing) == set(OPS)


def test_eager_serves_everything():
    eager = environment.report().providers[0]
    assert eager.ops == sorted(OPS) and not eager.missing


def test_native_cpu_agrees_with_the_loader():
    provider = environment.report().providers[1]
    if native.load_error() is not None:
        assert not provider.available and provider.reason
    for op in provider.ops:
        assert native.reason(op, "cpu", torch.float32) is None


def test_loader_error_reaches_the_report(monkeypatch):
    monkeypatch.setattr(native, "reason", lambda op, device, dtype: "libnothing.so: not found")
    _, cpu, cuda, _ = environment.report().providers
    assert not cpu.available and cpu.reason == "libnothing.so: not found"
    assert not cuda.available and cuda.reason == "libnothing.so: not found"


def test_cuda_kernels_without_a_gpu_are_not_available(monkeypatch):
    monkeypatch.setattr(native, "reason", lambda op, device, dtype: None)
    monkeypatch.setattr(environment, "_gpus", lambda: ([], "no GPU today"))
    _, cpu, cuda, _ = environment.report().providers
    assert cpu.available and set(cpu.ops) == set(OPS)
    assert not cuda.available and "no GPU today" in cuda.reason


def test_reasons_are_shown_once_for_all_their_ops(monkeypatch, capsys):
    why = {
        "swiglu": "not on Sundays",
        "rms_norm": "not on Sundays",
        "exit_update": "no such kernel",
    }
    monkeypatch.setattr(native, "reason", lambda op, device, dtype: why.get(op))
    Console(width=200).print(environment_view(environment.report()))
    shown = capsys.readouterr().out
    assert "not on Sundays: rms_norm, swiglu" in shown and "no such kernel: exit_update" in shown


@pytest.mark.parametrize("content", ["exit 3", "echo nothing useful"])
def test_broken_nvcc_is_no_version(tmp_path, monkeypatch, content):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\n{content}\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert environment._nvcc_version() is None
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    assert environment._nvcc_version() == "13.0"


def test_no_cuda_at_import():
    code = (
        "import torch, rdkernels, rdkernels.environment as e, sys;"
        "sys.exit(torch.cuda.is_initialized() or 'triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
