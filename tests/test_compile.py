"""torch.compile over our ops: one graph, no breaks, any number of rows, results as in eager mode.

The compiled function is an iteration of a core block with one layer, written with the public
functions only, as a user of single ops would.
"""

from __future__ import annotations

import subprocess
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import linear

import rdkernels as rdk
from cases.attention import rotary_table
from rdkernels import ops
from rdkernels.backends import native
from rdkernels.errors import BackendError
from rdkernels.registry import choice, forget_choices
from tests.support.checking import assert_close_to_reference
from tests.support.tiny import tiny_model

WIDTH, HEADS, KV_HEADS, HEAD_DIM, MLP_WIDTH = 48, 6, 2, 16, 80
PAGE_SIZE, PAGES, START = 16, 7, 13
EPS = 1e-6
DTYPES = (torch.float32, torch.bfloat16)
MISSING = native.load_error()
needs_native = pytest.mark.skipif(MISSING is not None, reason=f"rdkernels._C: {MISSING}")


@dataclass
class Layer:
    """Weights of one core layer, and the K/V that it shares between iterations."""

    adapter: torch.Tensor  # [D, 2D]
    norms: torch.Tensor  # [4, D]
    wqkv: torch.Tensor
    qk_bias: torch.Tensor
    attn_proj: torch.Tensor
    mlp_fc: torch.Tensor
    mlp_proj: torch.Tensor
    key: torch.Tensor  # [pages, page_size, HK, d]
    value: torch.Tensor

    @staticmethod
    def random(seed: int) -> Layer:
        """fp32 weights of a size that keeps states at about 1, and a cache of random history."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        def weight(out: int, width: int) -> torch.Tensor:
            return normal(out, width) / width**0.5

        return Layer(
            adapter=weight(WIDTH, 2 * WIDTH),
            norms=1 + 0.1 * normal(4, WIDTH),
            wqkv=weight((HEADS + 2 * KV_HEADS) * HEAD_DIM, WIDTH),
            qk_bias=0.1 * normal(HEADS + KV_HEADS, HEAD_DIM),
            attn_proj=weight(WIDTH, HEADS * HEAD_DIM),
            mlp_fc=weight(2 * MLP_WIDTH, WIDTH),
            mlp_proj=weight(WIDTH, MLP_WIDTH),
            key=normal(PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM),
            value=normal(PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM),
        )

    def to(self, dtype: torch.dtype) -> Layer:
        """A copy, rounded to ``dtype``."""
        return Layer(*(tensor.to(dtype, copy=True) for tensor in vars(self).values()))


def iterate(
    layer: Layer,
    adapter_input: torch.Tensor,
    cos_sin: torch.Tensor,
    page_table: torch.Tensor,
    cu_rows: torch.Tensor,
    start: torch.Tensor,
) -> torch.Tensor:
    """One iteration: ``[N, 2D]`` -> ``[N, D]``; writes the K/V of its rows."""
    hidden = ops.row_linear(adapter_input, layer.adapter)
    normed = ops.rms_norm(hidden, layer.norms[0], EPS)
    mixed = ops.recurrent_attention(
        linear(normed, layer.wqkv), layer.qk_bias, cos_sin, layer.key, layer.value,
        page_table, cu_rows, start,
    )  # fmt: skip
    delta = linear(mixed, layer.attn_proj)
    hidden, normed = ops.residual_norm(delta, hidden, layer.norms[1], layer.norms[2], EPS)
    delta = ops.row_linear(ops.swiglu(linear(normed, layer.mlp_fc)), layer.mlp_proj)
    hidden, _ = ops.residual_norm(delta, hidden, layer.norms[3], None, EPS)
    return hidden


def rows_of(count: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Arguments of ``iterate`` after the layer: ``count`` rows of one sequence, fp32."""
    x = torch.randn(count, 2 * WIDTH, generator=torch.Generator().manual_seed(seed))
    page_table = torch.tensor([[4, 1, 6, 0]], dtype=torch.int32)
    cu_rows = torch.tensor([0, count], dtype=torch.int32)
    return (
        x, rotary_table(4 * PAGE_SIZE, HEAD_DIM), page_table, cu_rows,
        torch.tensor([START], dtype=torch.int32),
    )  # fmt: skip


def check(function, layer: Layer, count: int, dtype: torch.dtype, seed: int) -> None:
    """Outputs and both caches of ``function`` against the same iteration in eager mode."""
    x, *where = rows_of(count, seed)
    compiled, same, exact = layer.to(dtype), layer.to(dtype), layer.to(dtype).to(torch.float64)
    low = x.to(dtype)
    torch._dynamo.mark_dynamic(low, 0)
    out = function(compiled, low, *where)
    with torch.no_grad():
        want = iterate(same, x.to(dtype), *where)
        reference = iterate(exact, x.to(dtype).double(), *where)
    assert_close_to_reference(out, want, reference)
    assert_close_to_reference(compiled.key, same.key, exact.key)
    assert_close_to_reference(compiled.value, same.value, exact.value)
    assert not torch.equal(compiled.key, layer.to(dtype).key) or count == 0, "nothing was written"


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch):
    monkeypatch.delenv("RDKERNELS_BACKEND", raising=False)
    torch.compiler.reset()
    with torch.no_grad():
        yield
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph_for_any_number_of_rows(backend, dtype, seed):
    counter = CompileCounterWithBackend(backend)
    function = torch.compile(iterate, backend=counter, fullgraph=True)
    layer = Layer.random(seed)
    check(function, layer, 5, dtype, seed)
    with torch.compiler.set_stance("fail_on_recompile"):
        for count in (2, 3, 11, 37):
            check(function, layer, count, dtype, seed + count)
    assert counter.frame_count == 1
    called = {str(node.target) for node in counter.graphs[0].graph.nodes}
    for op in ("rms_norm", "row_linear", "recurrent_attention", "residual_norm", "swiglu"):
        assert f"rdkernels.{op}.default" in called, f"{op} is not in the graph"


def test_dynamic_compilation_needs_no_marks(seed):
    function = torch.compile(iterate, backend="aot_eager", fullgraph=True, dynamic=True)
    layer = Layer.random(seed)
    for count, stance in ((5, "default"), (21, "fail_on_recompile")):
        x, *where = rows_of(count, seed)
        compiled, plain = layer.to(torch.float32), layer.to(torch.float32)
        with torch.compiler.set_stance(stance):
            out = function(compiled, x, *where)
        assert torch.equal(out, iterate(plain, x, *where))
        assert torch.equal(compiled.key, plain.key) and torch.equal(compiled.value, plain.value)


@pytest.mark.parametrize("count", [0, 1])
def test_no_row_and_one_row(count, seed):
    """Sizes that torch compiles for themselves."""
    layer = Layer.random(seed)
    check(
        torch.compile(iterate, backend="aot_eager", fullgraph=True), layer, count, DTYPES[0], seed
    )


def test_model_iterates_in_one_graph(seed):
    """The model's own iteration, for any number of rows that its few-row kernels take."""
    model = tiny_model(seed)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model.iterate, backend=counter, fullgraph=True)
    for count in (3, 5, 17):
        wavefront = rdk.Wavefront.from_lengths([0], [count])
        x = torch.randn(count, 2 * model.config.hidden_size)
        results = []
        for function in (compiled, model.iterate):
            cache = model.new_cache(1, 64)
            cache.reserve(0, count)
            rows = model.rows(wavefront, cache.core_page_table(0))
            adapter_input = x.clone()  # iterated in place
            torch._dynamo.mark_dynamic(adapter_input, 0)
            states = function(adapter_input, rows, cache)
            results.append((states, *(la.key for la in cache.core)))
        for got, want in zip(*results, strict=True):
            assert torch.equal(got, want)
    assert counter.frame_count == 1


def test_the_choice_of_a_provider_is_not_traced(monkeypatch):
    """It may read files or ask a driver, and gives no warning about its caches."""
    reason = choice.reason

    def asks_the_system(*key):
        subprocess.run(["true"], check=True)  # Dynamo cannot trace this
        return reason(*key)

    monkeypatch.setattr(choice, "reason", asks_the_system)
    x, weight = torch.randn(3, 8), torch.ones(8)

    def function(x, weight):
        return ops.swiglu(ops.bind(x).rms_norm(x, weight, EPS))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = torch.compile(function, backend="eager", fullgraph=True)(x, weight)
    assert torch.equal(got, function(x, weight))


def operators_in(function, *arguments) -> list[str]:
    """Names of our operators in the one graph of ``function``."""
    counter = CompileCounterWithBackend("eager")
    got = torch.compile(function, backend=counter, fullgraph=True)(*arguments)
    assert torch.equal(got, function(*arguments)) and counter.frame_count == 1
    targets = [str(node.target) for node in counter.graphs[0].graph.nodes]
    return [target for target in targets if target.startswith("rdkernels.")]


@needs_native
def test_forced_eager_is_traced_and_not_replaced_by_a_kernel(monkeypatch, seed):
    x = torch.randn(3, 8)
    assert operators_in(ops.swiglu, x) == ["rdkernels.swiglu.default"]
    assert operators_in(lambda x: ops.swiglu(x, backend="eager"), x) == []
    torch.compiler.reset()
    monkeypatch.setenv("RDKERNELS_BACKEND", "eager")
    assert operators_in(ops.swiglu, x) == []
    # Eager attention reads the layout back from its tensors: no graph can hold that.
    function = torch.compile(iterate, backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match=r"data-dependent|tolist|item"):
        function(Layer.random(seed), *rows_of(3, seed))


@pytest.mark.parametrize("fullgraph", [False, True])
def test_forced_provider_that_cannot_serve_says_why(fullgraph, monkeypatch):
    forget_choices()
    monkeypatch.setattr(choice, "reason", lambda name, *_: f"{name} is out of order")

    def function(x):
        return ops.swiglu(x, backend="native")

    # Where breaks are allowed torch lets the error through; else it wraps it in its own.
    error = torch._dynamo.exc.Unsupported if fullgraph else BackendError
    with pytest.raises(
        error, match=r"swiglu: no provider .* on cpu: native: native is out of order"
    ):
        torch.compile(function, backend="eager", fullgraph=fullgraph)(torch.ones(2, 4))


def test_gradients_flow_through_a_compiled_graph(seed):
    """What autograd records is eager code, which torch.compile differentiates."""
    x, weight = torch.randn(3, 8), torch.ones(8)

    def loss(x):
        return ops.swiglu(ops.rms_norm(x, weight)).square().sum()

    gradients = []
    with torch.enable_grad():
        for function in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
            leaf = x.clone().requires_grad_()
            function(leaf).backward()
            gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)
