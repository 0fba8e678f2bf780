"""The Triton provider: when it serves, its kernels past one tile, and what they compile to.

That its ops mean what eager means is tested where all providers are: tests/ops, in the interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from cases.attention import make_case
from rdkernels import backends, ops
from rdkernels.backends import philox
from rdkernels.backends import triton as provider
from rdkernels.errors import ArgumentError, BackendError
from rdkernels.ops import OPS
from rdkernels.registry import choice, forget_choices, only_by_name
from tests.support.attention_case import check_case
from tests.support.philox_reference import random_keys
from tools.kernel_audit.gate import Measurement
from tools.kernel_audit.triton_kernels import GATE, Resources

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    provider.reason("rms_norm", "cpu", torch.float32) is not None,
    reason="Triton's kernels run on the GPU here: tests/ops run them there",
)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def python(code: str) -> str:
    """What ``code`` prints in a new process without the interpreter."""
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- when it serves ----


def test_every_op_has_a_kernel_or_a_reason():
    for op in OPS:
        why = provider.reason(op, "cpu", torch.float32)
        assert (why is None) == (OPS[op].cpu_only is None), op
    assert "torch's GEMM" in provider.reason("row_linear", "cuda", torch.bfloat16)


def test_reasons(monkeypatch):
    def why(device: str, dtype: torch.dtype = torch.float32) -> str | None:
        return provider.reason("rms_norm", device, dtype)

    assert why("cpu") is None
    assert "not float64" in why("cpu", torch.float64)
    assert why("cuda") == "TRITON_INTERPRET is set: kernels run on the CPU"
    monkeypatch.delenv("TRITON_INTERPRET")
    assert why("cpu") == "Triton kernels need a CUDA device (or TRITON_INTERPRET=1 for tests)"
    if not torch.cuda.is_available():
        assert "built without CUDA" in why("cuda") or "no usable CUDA device" in why("cuda")
    monkeypatch.setattr(provider, "_is_installed", lambda: False)
    assert why("cpu") == why("cuda") == "triton is not installed"


def test_an_old_gpu_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    why = provider._cuda_reason.__wrapped__()
    assert why == "Triton kernels need a GPU of compute capability 8.0, this one has 7.5"


def test_the_interpreter_cannot_be_chosen_late():
    code = """
import os, torch, triton, triton.language
os.environ["TRITON_INTERPRET"] = "1"
from rdkernels.backends import triton as provider
print(provider.reason("rms_norm", "cpu", torch.float32))
"""
    assert python(code) == "TRITON_INTERPRET was set after triton had been imported"


def test_rdkernels_does_not_import_triton():
    assert python("import rdkernels, sys; print('triton' in sys.modules)") == "False"


def test_the_interpreter_serves_only_by_name(monkeypatch):
    """Not even without the native extension, which would be preferred."""
    assert only_by_name("triton", "cpu") and not only_by_name("triton", "cuda")
    monkeypatch.setattr(backends.native, "reason", lambda *_: "not built")
    monkeypatch.delenv("RDKERNELS_BACKEND", raising=False)
    forget_choices()
    try:
        assert OPS["swiglu"].provider(torch.ones(1)) == OPS["swiglu"].eager
        by_name = OPS["swiglu"].provider(torch.ones(1), "triton")
        assert by_name == provider.function("swiglu")
    finally:
        forget_choices()


def test_triton_serves_a_gpu_without_the_native_extension(monkeypatch):
    monkeypatch.setattr(backends.native, "reason", lambda *_: "not built")
    monkeypatch.setattr(backends.triton, "reason", lambda *_: None)
    forget_choices()
    try:
        served = choice.select("swiglu", None, "cuda", torch.bfloat16)
        assert served == provider.function("swiglu")
    finally:
        forget_choices()


def test_head_dims_and_caches_that_cannot_be_served():
    large = make_case([0], [1], heads=1, kv_heads=1, head_dim=258)
    with pytest.raises(BackendError, match="head_dim at most 256, got 258"):
        large.run("triton")
    case = make_case([0], [1])
    transposed = case.key_cache.transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(ArgumentError, match="key_cache: expected contiguous pages"):
        replace(case, key_cache=transposed).run("triton")


# ---- as torch operators ----


def test_operators():
    x, weight = torch.randn(3, 8), torch.randn(8)
    depth, keys = torch.ones(3).int(), random_keys(3)
    calls = {
        "rms_norm": (x, weight, 1e-6),
        "residual_norm": (x, x + 1, weight, None, 1e-6, "huginn"),
        "exit_update": (x, x + 1, depth, None, 4, 0.03, "cosine"),
        "inject_state": (x, x, x, depth, 0.1, torch.ones(3), keys, 7, 0.5, True),
    }
    for op, arguments in calls.items():
        function = getattr(torch.ops.rdkernels_triton, op).default
        torch.library.opcheck(function, arguments, test_utils=("test_schema", "test_faketensor"))


def test_torch_compile_sees_one_node():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    @torch.compile(backend=backend, fullgraph=True)
    def step(x, weight):
        normed = torch.ops.rdkernels_triton.rms_norm(x, weight, 1e-6)
        return torch.ops.rdkernels_triton.swiglu(normed) + 1

    x, weight = torch.randn(3, 8), torch.randn(8)
    want = ops.swiglu(ops.rms_norm(x, weight, backend="eager"), backend="eager") + 1
    assert torch.allclose(step(x, weight), want, atol=1e-6)
    targets = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert sum("rdkernels_triton" in target for target in targets) == 2


# ---- random numbers ----


@pytest.mark.parametrize("seed", [0, 1, -1, 2**32, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("first", [0, 8])
def test_words_are_eagers_bit_for_bit(first, seed):
    from tests.support.triton_words import words

    keys = random_keys(3)
    keys[0] = torch.tensor([-1, 2**31 - 1, 2**28 - 1])  # the ends of every field
    bits = words(keys, seed, 2, first, 16)
    uniform = philox.uniform(keys, first + 16, seed, 2)[:, first:]
    assert torch.equal((bits >> 8).double() * 2.0**-24 + 2.0**-25, uniform)


# ---- more than one tile ----


@pytest.mark.parametrize("width", [63, 64, 65, 200])
def test_rows_wider_than_a_tile(width, monkeypatch, seed):
    from rdkernels.backends.triton import launch

    monkeypatch.setattr(launch, "MAX_TILE", 64)
    x, y = torch.randn(2, 3, width).bfloat16().unbind()
    post, pre = torch.randn(2, width).bfloat16().unbind()
    depth = torch.zeros(3).int()

    def run(backend):
        norms = [
            t
            for style in ("huginn", "llama", "olmo")
            for t in ops.residual_norm(
                x, y, None if style == "llama" else post, pre, style=style, backend=backend
            )
        ]
        options = {"iterations": 1, "threshold": 0.1, "backend": backend}
        delta, _ = ops.exit_update(x, y, depth, **options)
        return [ops.rms_norm(x, post, backend=backend), delta, *norms]

    for got, want in zip(run("triton"), run("eager"), strict=True):
        assert torch.allclose(got.float(), want.float(), rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"top_k": 40}, {"top_p": 0.7}, {"min_p": 0.05}], ids=str)
def test_vocabulary_larger_than_a_tile(options, monkeypatch, seed):
    from rdkernels.backends.triton import sample_tokens

    monkeypatch.setattr(sample_tokens, "MAX_TILE", 64)
    monkeypatch.setattr(sample_tokens, "_GREEDY_TILE", 64)
    logits, keys = 2 * torch.randn(4, 203), random_keys(4)
    logits[1, 70] = logits[1, 199] = 9.0
    for temperature in (0.0, 1.0):

        def draw(backend, temperature=temperature):
            return ops.sample_tokens(
                logits, keys, temperature=temperature, seed=seed, backend=backend, **options
            )

        assert torch.equal(draw("triton"), draw("eager"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [96, 256])
def test_splits_of_a_context(head_dim, dtype, monkeypatch, seed):
    """Three sequences of which two are too short for every split."""
    from rdkernels.backends.triton import recurrent_attention

    monkeypatch.setattr(recurrent_attention, "_MIN_POSITIONS_PER_SPLIT", 48)
    case = make_case(
        [230, 0, 70], [3, 2, 1], heads=2, kv_heads=1, head_dim=head_dim, dtype=dtype, inactive=0.3
    )
    check_case(case, "triton", "cpu")


# ---- what they compile to ----


def check_resources(*arguments: str) -> subprocess.CompletedProcess:
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tools.kernel_audit", "--of", "triton", "--check", *arguments]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)


def test_resources_of_huginns_kernels():
    done = check_resources("--huginn", "--arch", "90")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_resources_of_every_kernel():
    done = check_resources()
    assert done.returncode == 0, done.stdout + done.stderr


def test_worse_resources_are_found():
    good = Resources(64, 0, 0, 1024, 128, 32)
    name = "recurrent_attention_kernel<bf16>"
    committed = {
        "triton": "3",
        "kernels": {name: {"sm_90": vars(good)}, "gone": {"sm_90": {}, "sm_80": {}}},
    }

    def complaints(release="3", **changes):
        now = {name: {"sm_90": Resources(**(vars(good) | changes))}}
        return GATE.regressions(Measurement(release, ("sm_90",), now), committed)

    assert complaints() == []
    assert complaints(registers=65) == [f"sm_90 {name}: 65 registers, 64 committed"]
    assert complaints(shared=2048) == [f"sm_90 {name}: 2048 bytes shared, 1024 committed"]
    assert complaints("4", registers=65, shared=2048) == [], "another compiler"
    assert complaints("4", stack=8) == [f"sm_90 {name}: stack: 8 bytes"]
    assert complaints(local_accesses=2) == [f"sm_90 {name}: local accesses: 2"]
    assert complaints(tensor_core_products=0) == [f"sm_90 {name}: no tensor-core products"]
    now = Measurement("3", ("sm_90",), {"new": {"sm_90": good}})
    unknown = GATE.regressions(now, committed)
    assert len(unknown) == 1 and "run --update" in unknown[0]
    assert GATE.vanished(Measurement("3", ("sm_90",), {name: {"sm_90": good}}), committed) == [
        "sm_90 gone: in triton_resources.json, but no longer compiled; run --update"
    ]
