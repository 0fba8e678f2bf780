"""Which provider serves a call: by name, by environment, by need for gradients; and why not."""

import re

import pytest
import torch

from cases import CASES, Shape
from cases.attention import make_case
from rdkernels import ops
from rdkernels.diagnostics import report_ops
from rdkernels.errors import ArgumentError, BackendError
from rdkernels.ops import BACKENDS, OPS, reasons
from rdkernels.registry import choice, forget_choices, only_by_name


def differentiable_calls():
    """Per op that has gradients: a call of an input ``[3, 8]``, fp32 on the CPU."""
    weight = torch.ones(8)

    def attend(qkv, **options):
        case = make_case([0], [3], heads=2, kv_heads=1, head_dim=2, bias=False)
        tensors = (qkv, *case.tensors[1:])
        return ops.recurrent_attention(*tensors, **options)

    return {
        "rms_norm": lambda x, **o: ops.rms_norm(x, weight, **o),
        "residual_norm": lambda x, **o: ops.residual_norm(x, x, weight, weight, **o)[1],
        "swiglu": ops.swiglu,
        "inject_state": lambda x, **o: ops.inject_state(x, x, **o)[0],
        "recurrent_attention": attend,
    }


CALLS = differentiable_calls()


@pytest.fixture(autouse=True)
def no_forced_backend(monkeypatch):
    monkeypatch.delenv("RDKERNELS_BACKEND", raising=False)


def call_public(op, arguments, **options):
    """Call the public function of ``op`` with schema arguments, passed by name."""
    names = [argument.name for argument in OPS[op].default._schema.arguments]
    return getattr(ops, op)(**dict(zip(names, arguments, strict=True)), **options)


def served_by(op, tensor, *arguments):
    return OPS[op].provider(tensor, *arguments)


@pytest.mark.parametrize("op", CALLS)
def test_inputs_that_require_grad_go_to_eager(op):
    x = torch.randn(3, 8, requires_grad=True)
    assert served_by(op, x, None, (x,)) == OPS[op].eager
    CALLS[op](x).sum().backward()
    assert x.grad.shape == x.shape and x.grad.isfinite().all()


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "eager"])
@pytest.mark.parametrize("op", CALLS)
def test_forced_kernels_refuse_gradients(op, backend):
    x = torch.randn(3, 8, requires_grad=True)
    with pytest.raises(BackendError, match=f"{op}: backend '{backend}' is forward only"):
        CALLS[op](x, backend=backend)


@pytest.mark.parametrize("op", CALLS)
def test_kernels_serve_under_no_grad(op):
    x = torch.randn(3, 8, requires_grad=True)
    with torch.no_grad():
        assert served_by(op, x, None, (x,)) == served_by(op, x.detach())
        assert not CALLS[op](x).requires_grad


def test_every_op_has_an_eager_provider_and_both_overloads():
    assert set(OPS) <= set(ops.__all__)
    for name, op in OPS.items():
        assert reasons(name, "cpu", torch.float32)["eager"] is None
        assert hasattr(torch.ops.rdkernels, name)
        assert (op.out is not None) == bool(op.default._schema.returns)


@pytest.mark.parametrize("op", OPS)
def test_first_provider_without_an_objection_serves(op):
    why = reasons(op, "cpu", torch.float32)
    assert list(why) == list(BACKENDS)
    serving = (name for name in BACKENDS if why[name] is None and not only_by_name(name, "cpu"))
    expected = next(serving)
    got = served_by(op, torch.zeros(1))
    assert (got == OPS[op].eager) == (expected == "eager")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ops_on_integers_are_looked_up_by_what_they_compute(dtype, monkeypatch):
    """Or a kernel would be refused for the int32 of its keys and the int64 of its tokens."""
    asked = []
    monkeypatch.setattr(choice, "select", lambda *key: asked.append(key) or (lambda *_: None))
    ops.truncated_normal(torch.zeros(1, 3).int(), 4, 1.0, 0, dtype=dtype)
    ops.advance_wavefront(torch.zeros(0, 4).long(), *[None] * 11)
    assert asked == [
        ("truncated_normal", None, "cpu", dtype),
        ("advance_wavefront", None, "cpu", torch.float32),
    ]


def test_float64_is_served_by_eager():
    x, weight = torch.randn(3, 8).double(), torch.ones(8).double()
    assert served_by("rms_norm", x) == OPS["rms_norm"].eager
    want = torch.nn.functional.rms_norm(x, (8,), weight, 1e-6)
    assert torch.allclose(ops.rms_norm(x, weight), want, rtol=1e-14)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "eager"])
def test_forced_provider_that_cannot_serve_says_why(backend):
    x, weight = torch.ones(1, 4).double(), torch.ones(4).double()
    with pytest.raises(
        BackendError, match=rf"^rms_norm: no provider .*float64 on cpu: {backend}: "
    ):
        ops.rms_norm(x, weight, backend=backend)


def test_unknown_backend():
    with pytest.raises(ArgumentError, match=r"^swiglu: backend: expected one of .*, got 'cuda'"):
        ops.swiglu(torch.ones(1, 2), backend="cuda")


def test_environment_variable_forces_a_provider(monkeypatch):
    x = torch.ones(1, 4)
    monkeypatch.setenv("RDKERNELS_BACKEND", "eager")
    assert served_by("rms_norm", x) == OPS["rms_norm"].eager
    monkeypatch.setenv("RDKERNELS_BACKEND", "cuda")
    with pytest.raises(ArgumentError, match="'cuda'"):
        ops.rms_norm(x, torch.ones(4))
    assert torch.equal(ops.rms_norm(x, torch.ones(4), 0.0, backend="eager"), x)
    monkeypatch.setenv("RDKERNELS_BACKEND", "")
    assert torch.equal(ops.rms_norm(x, torch.ones(4), 0.0), x)


@pytest.fixture
def chosen(monkeypatch):
    """The providers whose functions are looked up while nothing is remembered, in order."""
    names, lookup = [], choice.function
    monkeypatch.setattr(choice, "function", lambda *key: names.append(key[0]) or lookup(*key))
    forget_choices()
    yield names
    forget_choices()


@pytest.mark.parametrize("forced", [None, *BACKENDS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("op", OPS)
def test_report_says_what_a_call_does(op, dtype, forced, chosen, monkeypatch):
    """Where it says that a call raises, the call raises just that; nothing else serves instead."""
    (said,) = report_ops(op, "cpu", dtype, forced)
    assert (said.op, said.device, said.forced) == (op, "cpu", forced)
    assert said.reasons == reasons(op, "cpu", OPS[op].looked_up_by(dtype))
    assert (said.chosen is None) == (said.error is not None)
    sample = next(CASES[op](Shape.small(3, dtype))).arguments
    for by_name in (True, False):  # by argument, then by environment
        if not by_name:
            monkeypatch.setenv("RDKERNELS_BACKEND", forced or "")
        chosen.clear()
        forget_choices()
        options = {"backend": forced} if by_name else {}
        if said.error is None:
            call_public(op, sample, **options)
            assert chosen == [said.chosen]
        else:
            assert said.reasons[forced] in said.error and forced in said.error
            with pytest.raises(BackendError, match=re.escape(said.error)):
                call_public(op, sample, **options)
            assert chosen == []


@pytest.mark.parametrize("forced", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_a_forced_provider_that_cannot_serve_is_not_replaced(op, forced, chosen, monkeypatch):
    """Also eager, which never objects, and native, which serves all of these."""
    reason = choice.reason

    def out_of_order(name, *key):
        return f"{name} is out of order" if name == forced else reason(name, *key)

    monkeypatch.setattr(choice, "reason", out_of_order)
    sample = next(CASES[op](Shape.small(3, torch.float32))).arguments
    with pytest.raises(BackendError, match=rf"^{op}: .* {forced}: {forced} is out of order$"):
        call_public(op, sample, backend=forced)
    assert chosen == []
    if report_ops(op, dtype=torch.float32)[0].chosen is not None:
        call_public(op, sample)
        assert chosen and chosen != [forced]


def test_report_of_every_op():
    assert [said.op for said in report_ops()] == sorted(OPS)
    for said in report_ops(device="cuda:1", backend="native"):
        assert said.device == "cuda" and (said.chosen is None or torch.cuda.is_available())


def test_report_of_what_does_not_exist(monkeypatch):
    with pytest.raises(ArgumentError, match=r"^report_ops: op: expected one of advance_wave"):
        report_ops("softmax")
    with pytest.raises(
        ArgumentError, match=r"^report_ops: device: expected a torch device, got 'gpu'"
    ):
        report_ops(device="gpu")
    monkeypatch.setenv("RDKERNELS_BACKEND", "cuda")
    (said,) = report_ops("swiglu")
    assert said.forced == "cuda" and said.chosen is None
    with pytest.raises(ArgumentError, match=re.escape(said.error)):
        ops.swiglu(torch.ones(1, 2))
