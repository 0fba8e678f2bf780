"""``advance_wavefront`` on sequences of the slow model: packing, and comparing everything."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch

from rdkernels.ops import OPS, advance_wavefront
from tests.support.wavefront_model import Row, Sequence, advance

GARBAGE = 7  # a sample, depth and settled flag of rows past cu_rows[B] that would change results
UNWRITTEN = -5  # depth of a token that no row decided
FRESH = -1  # of the sources that `check` returns
WRITTEN = ("tokens", "start", "done", "committed_depth")


def sequence(consumed, sampled, settled, *, start=2, limit=30, known=None, given=()):
    """One sequence whose row ``i`` consumed ``consumed[i]`` and samples ``sampled[i]``.

    ``given``: known tokens from position ``start + len(consumed)`` on; ``known`` counts all.
    """
    rows = [
        Row(start + i, token, bool(ok), depth=4 * (len(sampled) - i))
        for i, (token, ok) in enumerate(zip(sampled, settled, strict=True))
    ]
    tokens = {p: 9 for p in range(start)}
    tokens |= {start + i: t for i, t in enumerate([*consumed, *given])}
    return Sequence(tokens, start, limit, start + 1 if known is None else known, 31, rows=rows)


def pack(sequences, stop_tokens=(), padding=0, device="cpu"):
    """The op's tensor arguments, in the order of its signature."""
    rows = [row for sequence in sequences for row in sequence.rows]
    width = max([sequence.limit for sequence in sequences], default=0) + 1

    def row_tensor(values, filler, dtype):
        return torch.tensor([*values, *[filler] * padding], dtype=dtype, device=device)

    def sequence_tensor(values, dtype):
        return torch.tensor(list(values), dtype=dtype, device=device)

    def table(maps, filler, dtype):
        values = [[entries.get(p, filler) for p in range(width)] for entries in maps]
        return torch.tensor(values, dtype=dtype, device=device).view(len(sequences), width)

    lengths = [0, *(len(sequence.rows) for sequence in sequences)]
    return {
        "tokens": table((s.tokens for s in sequences), 0, torch.int64),
        "start": sequence_tensor((s.start for s in sequences), torch.int32),
        "done": sequence_tensor((s.done for s in sequences), torch.bool),
        "committed_depth": table((s.committed_depth for s in sequences), UNWRITTEN, torch.int32),
        "sampled": row_tensor((row.sampled for row in rows), GARBAGE, torch.int64),
        "settled": row_tensor((row.settled for row in rows), True, torch.bool),
        "depth": row_tensor((row.depth for row in rows), GARBAGE, torch.int32),
        "cu_rows": torch.tensor(lengths, device=device).cumsum(0).int(),
        "limit": sequence_tensor((s.limit for s in sequences), torch.int32),
        "known": sequence_tensor((s.known for s in sequences), torch.int32),
        "sequence_ids": sequence_tensor((s.identity for s in sequences), torch.int32),
        "stop_tokens": sequence_tensor(stop_tokens, torch.int64),
    }


def expected(sequences, stop_tokens, headway, max_wavefront, restart, capacity):
    """What the op returns, as lists; advances ``sequences``."""
    bounds, counts, first = [0], [], 0
    sources, tokens, keys = [], [], []
    for sequence in sequences:
        here = {id(row): first + i for i, row in enumerate(sequence.rows)}
        rows, count = advance(sequence, set(stop_tokens), headway, max_wavefront, restart)
        for row in rows:
            fresh = row.source is None
            sources.append(-1 - here[id(row.before)] if fresh else here[id(row.source)])
            tokens.append(row.token)
            keys.append([sequence.identity, row.position, 0 if fresh else row.source.depth])
        first += len(sequence.rows)
        bounds.append(len(sources))
        counts.append(count)
    padding = capacity - len(sources)
    rows = [sources + [-1] * padding, tokens + [0] * padding, keys + [[0, 0, 0]] * padding]
    sources, tokens, keys = (values[:capacity] for values in rows)
    return bounds, sources, counts, tokens, keys


def check(
    sequences,
    provider,
    device,
    stop_tokens=(),
    headway=1,
    max_wavefront=128,
    padding=0,
    restart=False,
):
    """Run the op and the model on copies, compare everything; the model's sequences and rows."""
    tensors = pack(sequences, stop_tokens, padding, device)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    options = {"headway": headway, "max_wavefront": max_wavefront, "restart": restart}
    results = advance_wavefront(**tensors, **options, backend=provider)
    assert [t.dtype for t in results] == [torch.int32] * 3 + [torch.int64, torch.int32]
    model = copy.deepcopy(sequences)
    capacity = sum(len(s.rows) for s in sequences) + padding + len(sequences) * headway
    wanted = expected(model, stop_tokens, **options, capacity=capacity)
    names = ("next_cu_rows", "source_row", "committed", "row_tokens", "row_keys")
    for name, got, want in zip(names, results, wanted, strict=True):
        assert got.tolist() == want, name
    want = pack(model, stop_tokens, padding)
    for name in tensors:
        if name in WRITTEN:
            assert tensors[name].tolist() == want[name].tolist(), name
        else:
            assert torch.equal(tensors[name], before[name]), f"{name} is only read"
    bounds, sources = wanted[:2]
    return model, [[max(s, FRESH) for s in sources[a:b]] for a, b in pairwise(bounds)]


def check_out(sequences, provider, device, capacity, stop_tokens=(), headway=1, restart=False):
    """The ``out`` overload with outputs of ``capacity`` rows: eager, or what torch dispatches to.

    ``next_cu_rows`` and ``committed`` are parts of one tensor, ``row_keys`` columns of a wider one.
    """
    tensors, batch = pack(sequences, stop_tokens, device=device), len(sequences)

    def garbage(*shape, dtype=torch.int32):
        return torch.full(shape, -99, dtype=dtype, device=device)

    report, wide = garbage(2 * batch + 2), garbage(capacity, 5)
    outputs = {
        "next_cu_rows": report[: batch + 1],
        "source_row": garbage(capacity),
        "committed": report[batch + 1 : 2 * batch + 1],
        "row_tokens": garbage(capacity, dtype=torch.int64),
        "row_keys": wide[:, 1:4],
    }
    op = OPS["advance_wavefront"]
    function = op.eager_out if provider == "eager" else op.out
    function(*tensors.values(), headway, 128, restart, **outputs)
    model = copy.deepcopy(sequences)
    wanted = expected(model, stop_tokens, headway, 128, restart, capacity)
    for (name, got), want in zip(outputs.items(), wanted, strict=True):
        assert got.tolist() == want, name
    assert report[-1] == -99 and (wide[:, [0, 4]] == -99).all(), "written past an output"
    want = pack(model, stop_tokens)
    for name in WRITTEN:
        assert tensors[name].tolist() == want[name].tolist(), name
