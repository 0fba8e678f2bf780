"""Arguments for every op at a model's sizes, and the bytes that each call has to move at least."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from rdkernels.backends.philox import STREAM_INITIAL_STATE
from rdkernels.models.blocks import rotary_table
from rdkernels.models.config import ModelConfig
from rdkernels.models.weights import QuantizedWeight
from rdkernels.ops import OPS, reasons
from rdkernels.registry import function

PAGE_SIZE = 64
FILTERS = ("greedy", "temperature", "top-k, top-p, min-p")


@dataclass(frozen=True)
class Setting:
    """Where an op is called: the sizes of a model, and ``context`` positions behind the rows."""

    device: torch.device
    dtype: torch.dtype
    config: ModelConfig
    context: int

    def random(self, *shape: int, dtype: torch.dtype | None = None, seed: int = 0) -> torch.Tensor:
        """Normal values, made on the device."""
        generator = torch.Generator(self.device).manual_seed(seed)
        kind = self.dtype if dtype is None else dtype
        return torch.randn(shape, generator=generator, device=self.device, dtype=kind)


@dataclass(frozen=True)
class OpCase:
    """One call: ``arguments`` are the positional ones of the op's schema.

    Attributes:
        label: what tells it from the op's other cases.
        moved: bytes that have to be read or written once each, the floor of memory traffic.
        flops: multiplications and additions of the matrix products; 0 for ops without.
    """

    op: str
    label: str
    arguments: tuple
    moved: int
    flops: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """Of the computation: what decides which providers serve. fp32 for ops on integers."""
        for argument in self.arguments:
            if isinstance(argument, torch.dtype):
                return argument
            if isinstance(argument, torch.Tensor) and argument.is_floating_point():
                return argument.dtype
        return torch.float32

    def copies(self) -> tuple:
        """The arguments again, tensors copied: ops write to some of them."""
        return tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in self.arguments)

    def restore(self, used: tuple) -> None:
        """Undo what a call did to its integers (depths, tokens, positions), so that the next call
        has the same work. What an op writes to floating tensors is the same every time."""
        schema = OPS[self.op].default._schema.arguments
        for argument, now, then in zip(schema, used, self.arguments, strict=True):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and not now.is_floating_point():
                now.copy_(then)

    def providers(self, device: torch.device) -> dict[str, str | None]:
        """Per provider None if it serves this call, else why not."""
        return reasons(self.op, device.type, self.dtype)


def serve(case: OpCase, provider: str) -> Callable[..., object]:
    """The provider's function with positional arguments."""
    return function(provider, case.op)


def as_tuple(result: object) -> tuple[torch.Tensor, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def out_names(op: str) -> list[str]:
    """Names of the tensors that the ``out`` overload of ``op`` writes into."""
    return [a.name for a in OPS[op].out._schema.arguments if a.kwarg_only]


def out_buffers(case: OpCase) -> dict[str, torch.Tensor]:
    """Outputs for the ``out`` overload, each filled with what no op returns."""

    def poisoned(result: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(result)
        return out.fill_(float("nan")) if out.is_floating_point() else out.copy_(~result)

    results = as_tuple(OPS[case.op].eager(*case.copies()))
    return dict(zip(out_names(case.op), map(poisoned, results), strict=True))


def row_keys(at: Setting, rows: int) -> torch.Tensor:
    keys = torch.zeros(rows, 3, dtype=torch.int32, device=at.device)
    keys[:, 1] = torch.arange(rows, device=at.device)
    return keys


def attention(at: Setting, batch: int, rows: int) -> OpCase:
    """``batch`` sequences of ``rows`` rows each, behind ``at.context`` cached positions."""
    c, device, length = at.config, at.device, at.context + rows
    pages = -(-length // PAGE_SIZE)
    count, heads = batch * rows, c.num_heads + 2 * c.num_kv_heads
    generator = torch.Generator(device).manual_seed(1)
    table = torch.randperm(batch * pages, generator=generator, device=device)
    cache_shape = (batch * pages, PAGE_SIZE, c.num_kv_heads, c.head_dim)
    arguments = (
        at.random(count, heads * c.head_dim),
        at.random(c.num_heads + c.num_kv_heads, c.head_dim, seed=1),
        rotary_table(c, device),
        at.random(*cache_shape, seed=2),
        at.random(*cache_shape, seed=3),
        table.int().view(batch, pages),
        torch.arange(0, count + 1, rows, dtype=torch.int32, device=device),
        torch.full((batch,), at.context, dtype=torch.int32, device=device),
        None,
        c.head_dim**-0.5,
        True,
    )
    cell = 2 * c.num_kv_heads * c.head_dim  # K and V of one position
    elements = count * (heads + c.num_heads) * c.head_dim + (batch * at.context + count) * cell
    reach = batch * sum(at.context + i + 1 for i in range(rows))
    return OpCase(
        "recurrent_attention",
        f"{batch} x {rows} rows, context {at.context}",
        arguments,
        elements * arguments[0].element_size(),
        4 * c.num_heads * c.head_dim * reach,
    )


def residual_norm(at: Setting, rows: int) -> OpCase:
    width = at.config.hidden_size
    delta, residual = at.random(2, rows, width).unbind()
    post, pre = at.random(2, width, seed=1).unbind()
    elements = 4 * rows * width + 2 * width
    arguments = (delta, residual, post, pre, 1e-6, "huginn")
    return OpCase("residual_norm", f"{rows} rows", arguments, elements * delta.element_size())


def rms_norm(at: Setting, rows: int) -> OpCase:
    width = at.config.hidden_size
    x, weight = at.random(rows, width), at.random(width, seed=1)
    elements = 2 * rows * width + width
    return OpCase("rms_norm", f"{rows} rows", (x, weight, 1e-6), elements * x.element_size())


def swiglu(at: Setting, rows: int) -> OpCase:
    x = at.random(rows, 2 * at.config.intermediate_size)
    elements = 3 * rows * at.config.intermediate_size
    return OpCase("swiglu", f"{rows} rows", (x,), elements * x.element_size())


def row_linear(
    at: Setting, rows: int, shape: tuple[int, int] | None = None, int8: bool = False
) -> OpCase:
    """``shape``: of the weight, the hidden size squared if None."""
    width, depth = shape or (at.config.hidden_size,) * 2
    x, weight, scale = at.random(rows, depth), at.random(width, depth, seed=1) / depth**0.5, None
    if int8:
        quantized = QuantizedWeight.from_weight(weight)
        weight, scale = quantized.values, quantized.scale
    moved = rows * (width + depth) * x.element_size() + weight.nbytes
    label = f"{rows} rows, {width} x {depth}{', int8' if int8 else ''}"
    return OpCase("row_linear", label, (x, weight, scale), moved, 2 * rows * width * depth)


def inject_state(
    at: Setting, rows: int, momentum: bool = True, noise: bool = False, preserving: bool = False
) -> OpCase:
    """``preserving``: noise that keeps the variance."""
    state, embed, previous = at.random(3, rows, at.config.hidden_size).unbind()
    depth = torch.arange(rows, dtype=torch.int32, device=at.device)
    mixed = (previous, depth, 0.1) if momentum else (None, None, 0.0)
    noisy = (torch.full((rows,), 0.25, device=at.device), row_keys(at, rows)) if noise else ()
    arguments = (state, embed, *mixed, *(noisy or (None, None)), 7, at.config.state_std, preserving)
    chosen = {"momentum": momentum, "noise": noise, "variance preserving": preserving}
    label = ", ".join([f"{rows} rows", *(name for name, on in chosen.items() if on)])
    matrices = 6 if momentum else 5
    return OpCase("inject_state", label, arguments, matrices * state.nbytes)


def exit_update(at: Setting, rows: int, criterion: str = "latent-diff") -> OpCase:
    state, previous = at.random(2, rows, at.config.hidden_size).unbind()
    depth = torch.zeros(rows, dtype=torch.int32, device=at.device)
    active = torch.ones(rows, dtype=torch.bool, device=at.device)
    arguments = (state, previous, depth, active, 4, 0.03, criterion)
    moved = 2 * state.numel() * state.element_size() + rows * (1 + 4 + 4 + 4 + 1)
    return OpCase("exit_update", f"{rows} rows, {criterion}", arguments, moved)


def truncated_normal(at: Setting, rows: int) -> OpCase:
    width, keys = at.config.hidden_size, row_keys(at, rows)
    arguments = (keys, width, 1.0, 7, STREAM_INITIAL_STATE, at.dtype)
    moved = rows * width * at.dtype.itemsize
    return OpCase("truncated_normal", f"{rows} rows", arguments, moved)


def sample_tokens(at: Setting, rows: int, filters: str = "greedy") -> OpCase:
    logits = 3.0 * at.random(rows, at.config.vocab_size, dtype=torch.float32)
    options = {
        "greedy": (None, 0.0, 0, 1.0, 0.0),
        "temperature": (row_keys(at, rows), 0.8, 0, 1.0, 0.0),
        "top-k, top-p, min-p": (row_keys(at, rows), 0.8, 50, 0.9, 0.05),
    }
    arguments = (logits, *options[filters], 7)
    return OpCase("sample_tokens", f"{rows} rows, {filters}", arguments, logits.numel() * 4)


def advance_wavefront(at: Setting, batch: int, rows: int, restart: bool = False) -> OpCase:
    """Half of the rows settled; with ``restart`` the next one is wrong."""
    device, length, count = at.device, at.context + rows + 8, batch * rows
    sampled = torch.arange(count, device=device) % at.config.vocab_size
    tokens = torch.zeros(batch, length, dtype=torch.int64, device=device)
    first = at.context - 1
    tokens[:, first + 1 : first + 1 + rows] = sampled.view(batch, rows)
    if restart:
        tokens[:, first + (rows + 1) // 2] += 1
    small = partial(torch.full, dtype=torch.int32, device=device)
    arguments = (
        tokens,
        small((batch,), first),
        torch.zeros(batch, dtype=torch.bool, device=device),
        torch.zeros(batch, length, dtype=torch.int32, device=device),
        sampled,
        torch.arange(count, device=device) % rows < (rows + 1) // 2,
        small((count,), 8),
        torch.arange(0, count + 1, rows, dtype=torch.int32, device=device),
        small((batch,), length),
        small((batch,), first + 1),
        torch.arange(batch, dtype=torch.int32, device=device),
        torch.tensor([at.config.vocab_size - 1], device=device),
        1,
        128,
        restart,
    )
    moved = count * (8 + 8 + 1 + 8 + 4 + 4 + 8 + 12) + batch * 8 * 4
    label = f"{batch} x {rows} rows{', restart' if restart else ''}"
    return OpCase("advance_wavefront", label, arguments, moved)


def carry_rows(at: Setting, rows: int, continuous: bool = False) -> OpCase:
    """The first row is committed and a fresh one takes its place at the front."""
    state, embed = at.random(2, rows, at.config.hidden_size).unbind()
    source = torch.arange(1, rows + 1, dtype=torch.int32, device=at.device)
    source[-1] = -rows
    bounds = torch.tensor([0, rows], dtype=torch.int32, device=at.device)
    arguments = (state, embed, source, row_keys(at, rows), bounds, 7, 1.0, continuous)
    read = 2 * rows - (1 if continuous else 2)
    moved = (read + 2 * rows) * at.config.hidden_size * state.element_size()
    label = f"{rows} rows{', continuous' if continuous else ''}"
    return OpCase("carry_rows", label, arguments, moved)


# Every op whose case is a number of rows, with its variants.
ROW_CASES: dict[str, Callable[[Setting, int], OpCase]] = {
    "rms_norm": rms_norm,
    "residual_norm": residual_norm,
    "swiglu": swiglu,
    "row_linear": row_linear,
    "inject_state concat": partial(inject_state, momentum=False),
    "inject_state momentum": inject_state,
    "inject_state noise": partial(inject_state, noise=True),
    "inject_state variance": partial(inject_state, noise=True, preserving=True),
    "exit_update latent-diff": exit_update,
    "exit_update cosine": partial(exit_update, criterion="cosine"),
    "truncated_normal": truncated_normal,
    **{f"sample_tokens {name}": partial(sample_tokens, filters=name) for name in FILTERS},
    "carry_rows": carry_rows,
    "carry_rows continuous": partial(carry_rows, continuous=True),
}


def small_cases(at: Setting) -> Iterator[OpCase]:
    """Every op at least once, at few rows: for graphs, sanitizers and tests."""
    yield attention(at, 2, 3)
    yield attention(at, 1, 40)
    yield from (make(at, 5) for make in ROW_CASES.values())
    yield from (advance_wavefront(at, 3, 5, restart) for restart in (False, True))
