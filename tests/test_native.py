"""What is special about the native provider: layouts, ``out=`` forms, instruction sets, loading.

That its values are right op by op is in tests/ops, which runs on every provider.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest
import torch

from rdkernels import ops
from rdkernels._version import __version__
from rdkernels.backends import native
from rdkernels.errors import ArgumentError, BackendError
from tests.support.checking import assert_close_to_reference, assert_same_bits

ROOT = Path(__file__).resolve().parent.parent
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = (1, 7, 64, 5280, 35840)
EPS = 1e-6
CAPABILITIES = ("baseline", "avx2", "avx512", "avx512_bf16")  # each includes those before it
MISSING = native.load_error()
needs_native = pytest.mark.skipif(MISSING is not None, reason=f"rdkernels._C: {MISSING}")
DEVICES = [
    device for device in ("cpu", "cuda") if native.reason("rms_norm", device, torch.float32) is None
]


def calls(rows: int, width: int, dtype: torch.dtype, device: str) -> dict[str, tuple]:
    """For each op (and style): its name and random arguments."""
    delta, residual = torch.randn(2, rows, width, device=device).to(dtype).unbind()
    post, pre = torch.randn(2, width, device=device).to(dtype).unbind()
    # So that the products are about 1, as the 1e-5 of the error rule expects.
    weight = (torch.randn(9, width, device=device) / width**0.5).to(dtype)
    gated = (4 * torch.randn(rows, 2 * width, device=device)).to(dtype)
    return {
        "rms_norm": ("rms_norm", residual, pre, EPS),
        "swiglu": ("swiglu", gated),
        "row_linear": ("row_linear", residual, weight),
        "huginn": ("residual_norm", delta, residual, post, pre, EPS, "huginn"),
        "huginn without pre": ("residual_norm", delta, residual, post, None, EPS, "huginn"),
        "llama": ("residual_norm", delta, residual, None, pre, EPS, "llama"),
        "olmo": ("residual_norm", delta, residual, post, pre, EPS, "olmo"),
    }


CALLS = tuple(calls(1, 1, torch.float32, "cpu"))


def outputs(result) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def kernel(op: str):
    return getattr(torch.ops.rdkernels, op)


def wide(arguments: tuple) -> list:
    return [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]


def check(op: str, *arguments, out: tuple[torch.Tensor, ...] | None = None) -> None:
    """The error rule for every output of one native call (or for given ``out``)."""
    got = outputs(native.function(op)(*arguments)) if out is None else out
    definition = ops.OPS[op].meaning
    same, exact = outputs(definition(*arguments)), outputs(definition(*wide(arguments)))
    for triple in zip(got, same, exact, strict=True):
        assert_close_to_reference(*triple)


@needs_native
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", (0, 1, 5))
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("device", DEVICES)
def test_values(device, call, width, rows, dtype, seed):
    check(*calls(rows, width, dtype, device)[call])


@needs_native
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("offset", (1, 3, 8))
@pytest.mark.parametrize("device", DEVICES)
def test_slices_with_any_alignment(device, offset, dtype, seed):
    """Rows of a larger tensor that start anywhere, for inputs and outputs; nothing else changes."""
    big = torch.randn(9, 200, device=device).to(dtype)
    x, weight = big[1:8:2, offset : offset + 72], big[0, offset : offset + 72]
    check("rms_norm", x, weight, EPS)
    target = torch.full((4, 100), 7.0, device=device, dtype=dtype)
    out = target[:, offset : offset + 72]
    kernel("rms_norm").out(x, weight, EPS, out=out)
    check("rms_norm", x, weight, EPS, out=(out,))
    out.fill_(7.0)
    assert (target == 7.0).all(), "wrote outside of its rows"


@needs_native
@pytest.mark.parametrize("device", DEVICES)
def test_columns_apart_and_broadcast_rows(device, seed):
    x = torch.randn(6, 80, device=device)
    weight = torch.randn(80, device=device)
    check("rms_norm", x[:, ::2], weight[::2], EPS)
    check("rms_norm", x.t(), weight[:6], EPS)
    check("rms_norm", x[:1].expand(5, 80), weight, EPS)


@needs_native
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("device", DEVICES)
def test_out_form_writes_what_the_default_returns(device, call, dtype, seed):
    op, *arguments = calls(5, 72, dtype, device)[call]
    expected = outputs(kernel(op).default(*arguments))
    names = ("hidden", "normed") if len(expected) == 2 else ("out",)
    out = {n: torch.full_like(e, float("nan")) for n, e in zip(names, expected, strict=True)}
    assert kernel(op).out(*arguments, **out) is None
    for name, want in zip(names, expected, strict=True):
        assert_same_bits(out[name], want)


@needs_native
@pytest.mark.parametrize("width", (72, 5281))
@pytest.mark.parametrize("style", ("huginn", "llama", "olmo"))
@pytest.mark.parametrize("device", DEVICES)
def test_outputs_may_be_the_inputs(device, style, width, seed):
    op, *arguments = calls(5, width, torch.bfloat16, device)[style]
    hidden, normed = kernel(op).default(*arguments)
    delta, residual = arguments[0].clone(), arguments[1].clone()
    kernel(op).out(delta, residual, *arguments[2:], hidden=residual, normed=delta)
    assert_same_bits(residual, hidden)
    assert_same_bits(delta, normed)


@needs_native
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("device", DEVICES)
def test_nan_stays_in_its_row(device, call, seed):
    op, *arguments = calls(4, 72, torch.float32, device)[call]
    clean = [t.clone() for t in outputs(kernel(op).default(*arguments))]
    arguments[0][2, 5] = float("nan")
    for got, before in zip(outputs(kernel(op).default(*arguments)), clean, strict=True):
        if got.numel():
            assert got[2].isnan().any()
            assert_same_bits(got[[0, 1, 3]], before[[0, 1, 3]])


@needs_native
def test_result_does_not_depend_on_threads_or_batch(seed):
    x, weight = torch.randn(300, 700).bfloat16(), torch.randn(700).bfloat16()
    rms_norm = partial(kernel("rms_norm").default, weight=weight, eps=EPS)
    single = rms_norm(x)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_same_bits(rms_norm(x), single)
    finally:
        torch.set_num_threads(before)
    assert_same_bits(torch.cat([rms_norm(row) for row in x.split(1)]), single)


X, W = torch.zeros(4, 6), torch.zeros(6)
BAD_CALLS = {
    "rank": ("rms_norm", (X[0], W, EPS), {}, "rms_norm: x: expected .*, got float32.6. on cpu"),
    "weight": (
        "rms_norm",
        (X, W[:5], EPS),
        {},
        "weight: .*float32.6. on cpu, got .*5.",
    ),
    "weight dtype": ("rms_norm", (X, W.half(), EPS), {}, "weight: .* got float16.6. on cpu"),
    "dtype": ("rms_norm", (X.long(), W.long(), EPS), {}, "x: expected float32.*got int64.4, 6."),
    "odd": ("swiglu", (X[:, :3],), {}, "swiglu: x: expected an even second size"),
    "style": (
        "residual_norm",
        (X, X, W, W, EPS, "gpt"),
        {},
        "style: .*, got 'gpt'",
    ),
    "no post": ("residual_norm", (X, X, None, W, EPS, "olmo"), {}, "post_weight: .* got None"),
    "post": ("residual_norm", (X, X, W, W, EPS, "llama"), {}, "post_weight: expected None"),
    "delta": ("residual_norm", (X[:2], X, W, W, EPS, "olmo"), {}, "delta: .*4, 6. .* got .*2, 6."),
    "out shape": ("rms_norm", (X, W, EPS), {"out": X[:3].clone()}, "out: expected float32.4, 6."),
    "out dtype": ("rms_norm", (X, W, EPS), {"out": X.half()}, "out: .* got float16.4, 6."),
    "out columns": ("rms_norm", (X, W, EPS), {"out": torch.zeros(6, 4).t()}, "out: .*contiguous"),
    "out overlap": (
        "rms_norm",
        (X, W, EPS),
        {"out": torch.zeros(6).expand(4, 6)},
        "out: expected rows that do not overlap",
    ),
}


@needs_native
@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_arguments_are_named(name):
    op, arguments, out, message = BAD_CALLS[name]
    overload = "out" if out else "default"
    with pytest.raises(ValueError, match=message):
        getattr(kernel(op), overload)(*arguments, **out)


@needs_native
def test_public_functions_raise_argument_errors():
    with pytest.raises(ArgumentError, match=r"^rms_norm: weight: expected .*, got float32\[5\]"):
        ops.rms_norm(X, W[:5], backend="native")


@needs_native
def test_provider_choice(monkeypatch):
    x, weight = torch.randn(2, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    monkeypatch.delenv("RDKERNELS_BACKEND", raising=False)
    assert ops.rms_norm(x, weight).dtype == torch.float64  # eager serves
    with pytest.raises(BackendError, match=r"native: native kernels compute .*, not float64"):
        ops.rms_norm(x, weight, backend="native")
    monkeypatch.setenv("RDKERNELS_BACKEND", "native")
    with pytest.raises(BackendError, match="float64"):
        ops.rms_norm(x, weight)
    with pytest.raises(BackendError, match="requires grad"):
        ops.rms_norm(x.float().requires_grad_(), weight.float())
    chosen = ops.OPS["rms_norm"].provider(x.float())
    assert chosen is not ops.OPS["rms_norm"].eager


@needs_native
def test_build_info_and_reasons():
    info = native.build_info()
    assert info["version"] == __version__, "rebuild: pip install --no-build-isolation -e ."
    assert info["cpu_capability"] in CAPABILITIES
    assert info["compiler"] and info["torch"]
    assert (info["cuda_toolkit"] is None) == (not info["cuda_archs"])
    assert native.reason("rms_norm", "cpu", torch.float16) is None
    assert (
        native.reason("no_such_op", "cpu", torch.float32) == "no_such_op has no native CPU kernel"
    )
    assert "mps" in native.reason("rms_norm", "mps", torch.float32)
    if not torch.cuda.is_available():
        assert "CUDA" in native.reason("rms_norm", "cuda", torch.float32)


@pytest.mark.parametrize(
    ("arch", "runs", "does_not"),
    [
        ("sm_80", [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0)]),
        ("sm_90a", [(9, 0)], [(8, 9), (10, 0)]),
        ("compute_90", [(9, 0), (10, 0), (12, 0)], [(8, 9)]),
        ("sm_100a+compute_100a", [(10, 0)], [(10, 3), (12, 0)]),
        ("sm_86+compute_86", [(8, 6), (9, 0)], [(8, 0)]),
    ],
)
def test_which_gpus_an_architecture_serves(arch, runs, does_not):
    assert all(native._runs_on(arch, *gpu) for gpu in runs)
    assert not any(native._runs_on(arch, *gpu) for gpu in does_not)


def python(script: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@needs_native
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_instruction_set(capability):
    """The variants that this machine's best one hides; each in a process of its own."""
    script = """
        import torch
        from rdkernels.backends import native
        from tests.test_native import CALLS, FLOATS, calls, check
        for dtype in FLOATS:
            for width in (1, 7, 64, 1000):
                for call in CALLS:
                    check(*calls(3, width, dtype, "cpu")[call])
        print(native.build_info()["cpu_capability"])
    """
    used = python(script, RDKERNELS_CPU_CAPABILITY=capability).strip()
    order = CAPABILITIES
    assert order.index(used) <= order.index(capability)


def test_import_without_the_extension():
    script = """
        import sys
        sys.modules["rdkernels._C"] = None  # as if the file were not there
        import torch
        from rdkernels import ops
        from rdkernels.backends import native
        assert "not built" in native.load_error() and native.build_info() == {}
        assert native.reason("rms_norm", "cpu", torch.float32) == native.load_error()
        print(ops.rms_norm(torch.ones(2, 4), torch.ones(4), eps=0.0).sum().item())
    """
    assert python(script, RDKERNELS_BACKEND="").strip() == "8.0"


def test_import_keeps_the_loaders_words():
    script = """
        import sys

        class Broken:
            def find_spec(self, name, path=None, target=None):
                if name == "rdkernels._C":
                    raise ImportError("libtorch_cpu.so: undefined symbol: torch_parallel_for")

        sys.meta_path.insert(0, Broken())
        from rdkernels.backends import native
        print(native.load_error())
    """
    assert "does not load: libtorch_cpu.so: undefined symbol: torch_parallel_for" in python(script)


def test_import_does_not_initialise_cuda():
    script = "import rdkernels, torch; print(torch.cuda.is_initialized())"
    assert python(script).strip() == "False"
