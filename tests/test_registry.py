"""The registry: definitions composed of their parts, bound functions, and what torch promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rdkernels import ops
from rdkernels.backends import native
from rdkernels.errors import ArgumentError
from rdkernels.ops import OPS
from rdkernels.ops.checks import expect
from rdkernels.registry import BACKENDS, define, on_definition, register, torch_private
from tools import bound_stub

MISSING = native.load_error()
needs_native = pytest.mark.skipif(MISSING is not None, reason=f"rdkernels._C: {MISSING}")


# ---- definitions ----


def scaled_sum(
    x: torch.Tensor, y: torch.Tensor | None, factor: float, count: int = 2
) -> torch.Tensor:
    return factor * count * (x if y is None else x + y)


@pytest.fixture
def scaled(monkeypatch):
    """An op that is ours for the time of a test, with every part that a definition may have."""
    monkeypatch.setattr("rdkernels.registry.op.OPS", dict(OPS))
    heard = []
    monkeypatch.setattr("rdkernels.registry.op._LISTENERS", [lambda op: heard.append(op.name)])

    def check(count: int, x: torch.Tensor) -> None:  # in an order of its own
        expect(count > 0, "scaled_sum", "count", "at least 1", count)

    def check_out(x: torch.Tensor, total: torch.Tensor) -> None:
        expect(total.shape == x.shape, "scaled_sum", "total", "the shape of x", total.shape)

    with torch.library._scoped_library("rdkernels", "FRAGMENT") as library:
        monkeypatch.setattr("rdkernels.registry.op.LIBRARY", library)
        yield define(
            scaled_sum,
            check=check,
            fake=lambda x: torch.empty_like(x),
            out=("total",),
            check_out=check_out,
            cpu_only="it is a test",
        )
    assert heard == ["scaled_sum"]


def test_a_definition_is_composed_of_its_parts(scaled):
    x, out = torch.ones(3), torch.zeros(3)
    assert scaled.schema == ("scaled_sum(Tensor x, Tensor? y, float factor, int count=2) -> Tensor")
    assert torch.ops.rdkernels.scaled_sum(x, None, 2.0).tolist() == [4.0] * 3
    assert scaled.eager(x, x, 1.0, 3).tolist() == [6.0] * 3
    assert torch.ops.rdkernels.scaled_sum.out(x, None, 0.5, total=out) is None
    assert out.tolist() == [1.0] * 3
    assert scaled.eager(x, None, 1.0, out=(out,)) is None and out.tolist() == [2.0] * 3
    for call in (scaled.eager, torch.ops.rdkernels.scaled_sum.default, scaled.check):
        with pytest.raises(ArgumentError, match=r"^scaled_sum: count: expected at least 1, got 0"):
            call(x, None, 1.0, 0)
    with pytest.raises(ArgumentError, match=r"^scaled_sum: total: expected the shape of x"):
        torch.ops.rdkernels.scaled_sum.out(x, None, 0.5, total=torch.zeros(2))
    torch.library.opcheck(torch.ops.rdkernels.scaled_sum.default, (x, x, 1.5))
    assert scaled.kernel_devices == frozenset()


def test_a_check_of_an_argument_that_the_op_has_not_is_refused():
    def nameless(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    with (
        torch.library._scoped_library("rdkernels", "FRAGMENT") as library,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("rdkernels.registry.op.LIBRARY", library)
        with pytest.raises(ValueError, match="not in tuple"):
            define(nameless, fake=lambda x: x, check=lambda y: None)
    assert "nameless" not in OPS


def test_listeners_hear_of_ops_that_are_already_there(monkeypatch):
    monkeypatch.setattr("rdkernels.registry.op._LISTENERS", [])
    heard = []
    on_definition(lambda op: heard.append(op.name))
    assert heard == list(OPS)


def test_providers_have_names_that_the_choice_knows():
    with pytest.raises(ArgumentError, match=r"^register: name: expected one of native, "):
        register("metal", native)
    assert BACKENDS == ("native", "triton", "eager")


# ---- bound functions ----


def test_the_stub_is_what_the_definitions_say():
    assert bound_stub.STUB.read_text() == bound_stub.stub(), "run python -m tools.bound_stub"


@pytest.mark.parametrize("backend", ["eager", pytest.param("native", marks=needs_native)])
def test_bound_functions_write_where_they_are_told(backend):
    x, out = torch.randn(3, 8), torch.zeros(3, 4)
    bound = ops.bind(x, backend)
    assert bound.chosen("swiglu") == backend
    assert bound.swiglu(x, out=(out,)) is None
    assert torch.equal(out, bound.swiglu(x))
    with pytest.raises(AttributeError, match="softmax"):
        bound.softmax(x)


# ---- what torch does not promise ----


def test_the_private_mark_is_what_torch_sets():
    def marked() -> int:
        return 1

    def by_torch() -> int:
        return 1

    assert torch_private._knows_the_constant_mark(), "assume_constant_result serves, and is slow"
    torch_private.constant_while_traced(marked)
    torch.compiler.assume_constant_result(by_torch)
    assert vars(marked) == vars(by_torch)


def test_without_the_private_mark_torchs_own_function_serves(monkeypatch):
    monkeypatch.setattr(torch_private, "_knows_the_constant_mark", lambda: False)
    taken = []
    monkeypatch.setattr(
        torch.compiler, "assume_constant_result", lambda f: taken.append(f) or "theirs"
    )
    assert torch_private.constant_while_traced(len) == "theirs" and taken == [len]


def test_a_torch_without_the_mark_is_recognised(monkeypatch, tmp_path):
    source = tmp_path / "_dynamo" / "decorators.py"
    source.parent.mkdir()
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    asked = torch_private._knows_the_constant_mark.__wrapped__
    assert not asked(), "no such file"
    source.write_text("def assume_constant_result(fn): fn._another_mark = True")
    assert not asked()


@pytest.mark.parametrize("public", [True, False])
def test_kernels_are_found_by_the_public_and_the_older_way(public, monkeypatch):
    with torch.library._scoped_library("rdkernels_kernels", "DEF") as library:
        library.define("bare(Tensor x) -> Tensor")
        library.define("served(Tensor x) -> Tensor")
        library.impl("served", torch.clone, "CPU")
        if not public:
            monkeypatch.setattr(torch, "library", SimpleNamespace())
        assert torch_private.has_kernel("rdkernels_kernels::served", "CPU")
        assert not torch_private.has_kernel("rdkernels_kernels::served", "CUDA")
        assert not torch_private.has_kernel("rdkernels_kernels::bare", "CPU")


def test_private_names_of_torch_are_in_one_file():
    package = Path(ops.__file__).parents[1]
    private = ("torch._C", "torch._dynamo", "_dynamo_marked")
    users = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(name in path.read_text() for name in private)
    }
    assert users == {"registry/torch_private.py"}


def test_importing_rdkernels_imports_no_compiler():
    code = "import rdkernels, sys; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- errors of native kernels ----


def failing(message: str):
    def operator(*args, out=None):
        raise ValueError(message)

    return operator


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ("swiglu: x: expected an even size, got 3", ("swiglu", "x", "an even size", "3")),
        (
            "transformer_blocks: weights[3] (wqkv of block 0): expected a: b, got c, got d",
            ("transformer_blocks", "weights[3] (wqkv of block 0)", "a: b, got c", "d"),
        ),
    ],
)
def test_a_refusal_of_a_native_kernel_is_an_argument_error(message, parts, monkeypatch):
    monkeypatch.setattr(OPS["swiglu"], "operator", failing(message))
    with pytest.raises(ArgumentError) as caught:
        native.function("swiglu")(torch.ones(1, 2))
    assert str(caught.value) == message
    assert native._REFUSAL.fullmatch(message).groups() == parts


@pytest.mark.parametrize("message", ["too large", "swiglu: out of memory", "a: b: c: d", ""])
def test_any_other_error_of_a_native_kernel_is_raised_as_it_is(message, monkeypatch):
    monkeypatch.setattr(OPS["swiglu"], "operator", failing(message))
    with pytest.raises(ValueError) as caught:
        native.function("swiglu")(torch.ones(1, 2))
    assert type(caught.value) is ValueError and str(caught.value) == message
