"""Arguments for every op at a model's sizes, and the bytes that each call has to move at least."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from bench.gpu.session import Session
from rdkernels.backends.philox import STREAM_INITIAL_STATE
from rdkernels.ops import OPS, reasons
from rdkernels.registry import function

PAGE_SIZE = 64
TIMED_ROWS = (1, 8, 32, 128)


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


def out_buffers(case: OpCase) -> dict[str, torch.Tensor]:
    """Outputs for the ``out`` overload, each filled with what no op returns."""
    results = OPS[case.op].eager(*case.copies())
    results = results if isinstance(results, tuple) else (results,)
    names = [a.name for a in OPS[case.op].out._schema.arguments if a.kwarg_only]

    def poisoned(result: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(result)
        return out.fill_(float("nan")) if out.is_floating_point() else out.copy_(~result)

    return {name: poisoned(result) for name, result in zip(names, results, strict=True)}


def rotary_table(session: Session) -> torch.Tensor:
    from rdkernels.models.blocks import rotary_table as table

    return table(session.config, session.device)


def row_keys(session: Session, rows: int) -> torch.Tensor:
    keys = torch.zeros(rows, 3, dtype=torch.int32, device=session.device)
    keys[:, 1] = torch.arange(rows, device=session.device)
    return keys


def attention(session: Session, batch: int, rows: int) -> OpCase:
    """``batch`` sequences of ``rows`` rows each, behind ``session.context`` cached positions."""
    c, device, length = session.config, session.device, session.context + rows
    pages = -(-length // PAGE_SIZE)
    count, heads = batch * rows, c.num_heads + 2 * c.num_kv_heads
    generator = torch.Generator(device).manual_seed(1)
    table = torch.randperm(batch * pages, generator=generator, device=device)
    cache_shape = (batch * pages, PAGE_SIZE, c.num_kv_heads, c.head_dim)
    arguments = (
        session.random(count, heads * c.head_dim),
        session.random(c.num_heads + c.num_kv_heads, c.head_dim, seed=1),
        rotary_table(session),
        session.random(*cache_shape, seed=2),
        session.random(*cache_shape, seed=3),
        table.int().view(batch, pages),
        torch.arange(0, count + 1, rows, dtype=torch.int32, device=device),
        torch.full((batch,), session.context, dtype=torch.int32, device=device),
        None,
        c.head_dim**-0.5,
        True,
    )
    cell = 2 * c.num_kv_heads * c.head_dim  # K and V of one position
    elements = count * (heads + c.num_heads) * c.head_dim + (batch * session.context + count) * cell
    reach = batch * sum(session.context + i + 1 for i in range(rows))
    return OpCase(
        "recurrent_attention",
        f"{batch} x {rows} rows, context {session.context}",
        arguments,
        elements * arguments[0].element_size(),
        4 * c.num_heads * c.head_dim * reach,
    )


def residual_norm(session: Session, rows: int) -> OpCase:
    width = session.config.hidden_size
    delta, residual = session.random(2, rows, width).unbind()
    post, pre = session.random(2, width, seed=1).unbind()
    elements = 4 * rows * width + 2 * width
    arguments = (delta, residual, post, pre, 1e-6, "huginn")
    return OpCase("residual_norm", f"{rows} rows", arguments, elements * delta.element_size())


def rms_norm(session: Session, rows: int) -> OpCase:
    width = session.config.hidden_size
    x, weight = session.random(rows, width), session.random(width, seed=1)
    elements = 2 * rows * width + width
    return OpCase("rms_norm", f"{rows} rows", (x, weight, 1e-6), elements * x.element_size())


def swiglu(session: Session, rows: int) -> OpCase:
    x = session.random(rows, 2 * session.config.intermediate_size)
    elements = 3 * rows * session.config.intermediate_size
    return OpCase("swiglu", f"{rows} rows", (x,), elements * x.element_size())


def row_linear(session: Session, rows: int) -> OpCase:
    c = session.config
    x, weight = (
        session.random(rows, c.hidden_size),
        session.random(c.hidden_size, c.hidden_size, seed=1),
    )
    moved = (2 * rows * c.hidden_size + c.hidden_size**2) * x.element_size()
    return OpCase(
        "row_linear", f"{rows} rows", (x, weight, None), moved, 2 * rows * c.hidden_size**2
    )


def inject_state(session: Session, rows: int, noise: bool, preserving: bool = False) -> OpCase:
    """``preserving``: noise that keeps the variance."""
    width, device = session.config.hidden_size, session.device
    state, embed, previous = session.random(3, rows, width).unbind()
    depth = torch.arange(rows, dtype=torch.int32, device=device)
    weight = torch.full((rows,), 0.25, device=device) if noise else None
    keys = row_keys(session, rows) if noise else None
    mixed = (previous, depth, 0.1, weight, keys, 7, session.config.state_std, preserving)
    label = f"{rows} rows, momentum{' and noise' if noise else ''}"
    label += ", variance preserving" if preserving else ""
    return OpCase(
        "inject_state", label, (state, embed, *mixed), 6 * rows * width * state.element_size()
    )


def exit_update(session: Session, rows: int) -> OpCase:
    state, previous = session.random(2, rows, session.config.hidden_size).unbind()
    depth = torch.zeros(rows, dtype=torch.int32, device=session.device)
    active = torch.ones(rows, dtype=torch.bool, device=session.device)
    arguments = (state, previous, depth, active, 4, 0.03, "latent-diff")
    moved = 2 * state.numel() * state.element_size() + rows * (1 + 4 + 4 + 4 + 1)
    return OpCase("exit_update", f"{rows} rows", arguments, moved)


def truncated_normal(session: Session, rows: int) -> OpCase:
    width, keys = session.config.hidden_size, row_keys(session, rows)
    arguments = (keys, width, 1.0, 7, STREAM_INITIAL_STATE, session.dtype)
    moved = rows * width * session.dtype.itemsize
    return OpCase("truncated_normal", f"{rows} rows", arguments, moved)


def sample_tokens(session: Session, rows: int, filters: str) -> OpCase:
    logits = 3.0 * session.random(rows, session.config.vocab_size, dtype=torch.float32)
    options = {
        "greedy": (None, 0.0, 0, 1.0, 0.0),
        "temperature": (row_keys(session, rows), 0.8, 0, 1.0, 0.0),
        "top-k, top-p, min-p": (row_keys(session, rows), 0.8, 50, 0.9, 0.05),
    }
    arguments = (logits, *options[filters], 7)
    return OpCase("sample_tokens", f"{rows} rows, {filters}", arguments, logits.numel() * 4)


def advance_wavefront(session: Session, batch: int, rows: int, restart: bool) -> OpCase:
    """Half of the rows settled; with ``restart`` the next one is wrong."""
    device, length, count = session.device, session.context + rows + 8, batch * rows
    sampled = torch.arange(count, device=device) % session.config.vocab_size
    tokens = torch.zeros(batch, length, dtype=torch.int64, device=device)
    first = session.context - 1
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
        torch.tensor([session.config.vocab_size - 1], device=device),
        1,
        128,
        restart,
    )
    moved = count * (8 + 8 + 1 + 8 + 4 + 4 + 8 + 12) + batch * 8 * 4
    label = f"{batch} x {rows} rows{', restart' if restart else ''}"
    return OpCase("advance_wavefront", label, arguments, moved)


def carry_rows(session: Session, rows: int, continuous: bool) -> OpCase:
    """The first row is committed and a fresh one takes its place at the front."""
    state, embed = session.random(2, rows, session.config.hidden_size).unbind()
    source = torch.arange(1, rows + 1, dtype=torch.int32, device=session.device)
    source[-1] = -rows
    bounds = torch.tensor([0, rows], dtype=torch.int32, device=session.device)
    arguments = (state, embed, source, row_keys(session, rows), bounds, 7, 1.0, continuous)
    read = 2 * rows - (1 if continuous else 2)
    moved = (read + 2 * rows) * session.config.hidden_size * state.element_size()
    label = f"{rows} rows{', continuous' if continuous else ''}"
    return OpCase("carry_rows", label, arguments, moved)


def small_cases(session: Session) -> Iterator[OpCase]:
    """Every op at least once, at few rows: for graphs, sanitizers and tests."""
    yield attention(session, 2, 3)
    yield attention(session, 1, 40)
    yield residual_norm(session, 5)
    yield rms_norm(session, 5)
    yield swiglu(session, 5)
    yield row_linear(session, 5)
    yield inject_state(session, 5, noise=False)
    yield inject_state(session, 5, noise=True)
    yield inject_state(session, 5, noise=True, preserving=True)
    yield exit_update(session, 5)
    yield truncated_normal(session, 5)
    for filters in ("greedy", "temperature", "top-k, top-p, min-p"):
        yield sample_tokens(session, 5, filters)
    yield advance_wavefront(session, 3, 5, restart=False)
    yield advance_wavefront(session, 3, 5, restart=True)
    yield carry_rows(session, 5, continuous=False)
    yield carry_rows(session, 5, continuous=True)


def timed_cases(session: Session) -> Iterator[OpCase]:
    """Every op at the sizes that decoding has; one at a time, for they are large."""
    for batch, rows in session.wavefronts:
        yield attention(session, batch, rows)
    for rows in session.rows if session.dry_run else TIMED_ROWS:
        yield residual_norm(session, rows)
        yield rms_norm(session, rows)
        yield swiglu(session, rows)
        yield row_linear(session, rows)
        yield inject_state(session, rows, noise=False)
        yield inject_state(session, rows, noise=True)
        yield exit_update(session, rows)
        yield truncated_normal(session, rows)
        yield carry_rows(session, rows, continuous=False)
        for filters in ("greedy", "temperature", "top-k, top-p, min-p"):
            yield sample_tokens(session, rows, filters)
    for batch in session.batches:
        yield advance_wavefront(session, batch, session.batch_rows, restart=False)
