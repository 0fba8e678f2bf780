"""``advance_wavefront`` against a slow model of one sequence, and examples by name."""

import copy
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rdkernels.ops import advance_wavefront
from tests.support.checking import assert_refused
from tests.support.wavefront_model import FRESH, Row, Sequence, advance

OP = "advance_wavefront"
GARBAGE = 7  # a sample, depth and settled flag of rows past cu_rows[B] that would change results
UNWRITTEN = -5  # depth of a token that no row decided


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
        "stop_tokens": sequence_tensor(stop_tokens, torch.int64),
    }


def check(sequences, provider, device, stop_tokens=(), headway=1, max_wavefront=128, padding=0):
    """Run the op and the model on copies, compare everything; the model's sequences and rows."""
    tensors = pack(sequences, stop_tokens, padding, device)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    next_cu_rows, source_row, committed = advance_wavefront(
        **tensors, headway=headway, max_wavefront=max_wavefront, backend=provider
    )
    model = copy.deepcopy(sequences)
    bounds, sources, counts, first = [0], [], [], 0
    for sequence in model:
        following, count = advance(sequence, set(stop_tokens), headway, max_wavefront)
        sources += [row if row == FRESH else first + row for row in following]
        first += len(sequence.rows)
        bounds.append(len(sources))
        counts.append(count)
    capacity = first + padding + len(sequences) * headway
    assert [t.dtype for t in (next_cu_rows, source_row, committed)] == [torch.int32] * 3
    assert next_cu_rows.tolist() == bounds
    assert source_row.tolist() == sources + [-1] * (capacity - len(sources))
    assert committed.tolist() == counts
    want = pack(model, stop_tokens, padding)
    for name in ("tokens", "start", "done", "committed_depth"):
        assert tensors[name].tolist() == want[name].tolist(), name
    for name in ("sampled", "settled", "depth", "cu_rows", "limit", "stop_tokens"):
        assert torch.equal(tensors[name], before[name]), f"{name} is only read"
    return model, [sources[a:b] for a, b in pairwise(bounds)]


def sequence(consumed, sampled, settled, *, start=2, limit=30):
    """One sequence whose row ``i`` consumed ``consumed[i]`` and samples ``sampled[i]``."""
    rows = [
        Row(start + i, token, bool(ok), depth=4 * (len(sampled) - i))
        for i, (token, ok) in enumerate(zip(sampled, settled, strict=True))
    ]
    tokens = {p: 9 for p in range(start)} | {start + i: t for i, t in enumerate(consumed)}
    return Sequence(tokens, start, limit, rows=rows)


# Random states.


@st.composite
def random_sequence(draw, headway_room):
    start = draw(st.integers(0, 6))
    length = draw(st.integers(0, 6))
    # The last row is at most at limit - 2: it predicts the last token that may be.
    limit = start + max(length, 1) + 1 + draw(st.integers(0, headway_room))
    token = st.integers(0, 3)
    consumed = draw(st.lists(token, min_size=length, max_size=length))
    rows = []
    for i in range(length):
        sampled = draw(token)
        if i + 1 < length and draw(st.integers(0, 3)):
            sampled = consumed[i + 1]  # as drafts mostly are: the next row consumed it
        settled = draw(st.integers(0, 3)) > 0
        rows.append(Row(start + i, sampled, settled, draw(st.integers(0, 64))))
    tokens = {p: draw(token) for p in range(start + 1)}
    tokens |= {start + i: value for i, value in enumerate(consumed)}
    done = not length and draw(st.booleans())
    return Sequence(tokens, start, limit, done, rows)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_states(provider, device, data):
    headway = data.draw(st.integers(1, 4), "headway")
    sequences = data.draw(st.lists(random_sequence(headway + 2), max_size=4), "sequences")
    check(
        sequences,
        provider,
        device,
        stop_tokens=data.draw(st.lists(st.integers(0, 5), max_size=2), "stop_tokens"),
        headway=headway,
        max_wavefront=data.draw(st.integers(1, 8), "max_wavefront"),
        padding=data.draw(st.integers(0, 3), "padding"),
    )


# Examples by name: (sequences after, sources per sequence).


def test_commit_never_passes_an_unsettled_row(provider, device):
    state = sequence([1, 5, 6, 7], [5, 6, 7, 8], [True, False, True, True])
    (after,), (sources,) = check([state], provider, device)
    assert after.start == 3
    assert sources == [1, 2, 3, FRESH]
    assert after.committed_depth == {3: 16}


def test_nothing_commits_when_the_first_row_is_unsettled(provider, device):
    state = sequence([1, 5], [5, 6], [False, True])
    (after,), (sources,) = check([state], provider, device)
    assert after.start == 2 and not after.committed_depth
    assert sources == [0, 1, FRESH]


def test_stale_token_blocks_the_next_row(provider, device):
    """Row 0 now predicts 4 where row 1 consumed 5: row 0 is final, row 1 is not, though settled."""
    state = sequence([1, 5, 6], [4, 6, 7], [True, True, True])
    (after,), (sources,) = check([state], provider, device)
    assert after.start == 3
    assert [after.tokens[p] for p in (3, 4, 5)] == [4, 6, 7], "redrafted, row 1 consumes 4 next"
    assert sources == [1, 2, FRESH]


def test_everything_commits(provider, device):
    state = sequence([1, 5, 6], [5, 6, 7], [True, True, True])
    (after,), (sources,) = check([state], provider, device)
    assert after.start == 5 and not after.done
    assert sources == [FRESH], "the next row consumes the last committed token"
    assert after.committed_depth == {3: 12, 4: 8, 5: 4}


def test_stop_token_in_the_first_row(provider, device):
    state = sequence([1, 2, 6], [2, 6, 7], [True, True, True])
    (after,), (sources,) = check([state], provider, device, stop_tokens=[2, 99])
    assert after.done and after.start == 3 and sources == []
    assert after.committed_depth == {3: 12}


def test_uncommitted_stop_token_does_not_stop(provider, device):
    state = sequence([1, 5, 2], [5, 2, 7], [True, False, True])
    (after,), (sources,) = check([state], provider, device, stop_tokens=[2])
    assert not after.done and sources == [1, 2, FRESH]


def test_consumed_stop_token_does_not_stop(provider, device):
    """A prompt may end in a stop token; only a decided one counts."""
    (after,), _ = check([sequence([2], [5], [True])], provider, device, stop_tokens=[2])
    assert not after.done


def test_limit_is_reached(provider, device):
    """Limit 5: row 3 decides token 4, the last. No row lies past position 3."""
    state = sequence([1, 5], [5, 6], [True, True], limit=5)
    (after,), (sources,) = check([state], provider, device)
    assert after.done and after.start == 4 and sources == []


def test_limit_is_one_token_away(provider, device):
    """The front is at position limit - 2 already: nothing to extend by, but not done."""
    state = sequence([1, 5], [5, 6], [True, False], limit=5)
    (after,), (sources,) = check([state], provider, device, headway=3)
    assert not after.done and sources == [1]


@pytest.mark.parametrize(("limit", "fresh"), [(5, 0), (6, 1), (7, 2), (8, 3), (9, 3)])
def test_headway_near_the_limit(limit, fresh, provider, device):
    state = sequence([1, 5], [5, 6], [False, False], limit=limit)
    (after,), (sources,) = check([state], provider, device, headway=3)
    assert sources == [0, 1] + [FRESH] * fresh
    assert all(after.tokens[4 + i] == 6 for i in range(fresh)), "from the front's token"


@pytest.mark.parametrize(("max_wavefront", "fresh"), [(1, 0), (2, 0), (3, 0), (4, 1), (5, 2)])
def test_wavefront_is_full(max_wavefront, fresh, provider, device):
    state = sequence([1, 5, 6], [5, 6, 7], [False, True, True])
    _, (sources,) = check([state], provider, device, headway=2, max_wavefront=max_wavefront)
    assert sources == [0, 1, 2] + [FRESH] * fresh


def test_wavefront_of_one_is_autoregressive(provider, device):
    state = sequence([1], [5], [True])
    (after,), (sources,) = check([state], provider, device, max_wavefront=1)
    assert after.start == 3 and after.tokens[3] == 5 and sources == [FRESH]
    _, (sources,) = check([sequence([1], [5], [False])], provider, device, max_wavefront=1)
    assert sources == [0]


def test_finished_sequence_is_left_alone(provider, device):
    finished = Sequence({0: 3, 1: 2}, start=1, limit=6, done=True, committed_depth={1: 32})
    running = sequence([1, 5], [5, 6], [True, False])
    (after, _), sources = check([finished, running], provider, device, stop_tokens=[2])
    assert after == finished and sources == [[], [1, FRESH]]


def test_rows_of_several_sequences_keep_their_sequence(provider, device):
    states = [
        sequence([1, 5], [5, 6], [True, False]),
        sequence([1, 2], [2, 6], [True, True], start=0),
        sequence([3, 3, 3], [3, 3, 4], [True, True, False], start=5),
    ]
    _, sources = check(states, provider, device, stop_tokens=[2], headway=2)
    assert sources == [[1, FRESH, FRESH], [], [6, FRESH, FRESH]]


def test_padding_rows_belong_to_nobody(provider, device):
    state = sequence([1, 5], [5, 6], [True, True])
    (after,), (sources,) = check([state], provider, device, padding=3, stop_tokens=[GARBAGE])
    assert not after.done and sources == [FRESH]


def test_no_sequences(provider, device):
    check([], provider, device, padding=2)


def test_a_generation_runs_to_its_limit(provider, device):
    """Steps chained through the op alone: lengths never overshoot, every token gets a depth."""
    limit = torch.tensor([9, 5], dtype=torch.int32, device=device)
    tokens = torch.zeros(2, 9, dtype=torch.int64, device=device)
    start = torch.tensor([2, 0], dtype=torch.int32, device=device)
    done = torch.zeros(2, dtype=torch.bool, device=device)
    depths = torch.zeros(2, 9, dtype=torch.int32, device=device)
    cu_rows = torch.tensor([0, 1, 2], dtype=torch.int32, device=device)
    depth = torch.zeros(2, dtype=torch.int32, device=device)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    for _ in range(40):
        depth = depth + 4
        sampled = torch.full_like(depth, 6, dtype=torch.int64)
        cu_rows, source, _ = advance_wavefront(
            tokens, start, done, depths, sampled, depth >= 8, depth, cu_rows, limit, none,
            headway=2, max_wavefront=4, backend=provider,
        )  # fmt: skip
        source = source[: cu_rows[-1]].long()
        depth = torch.where(source < 0, 0, depth[source.clamp(min=0)]).int()
        if done.all():
            break
    assert (start + 1).tolist() == limit.tolist()
    assert cu_rows.tolist() == [0, 0, 0] and done.all()
    assert tokens[0, 3:].tolist() == [6] * 6 and tokens[1, 1:].tolist() == [6] * 4 + [0] * 4
    assert (depths[0, 3:] >= 8).all() and (depths[1, 1:5] >= 8).all()
    assert (depths[0, :3] == 0).all() and (depths[1, 5:] == 0).all()


def test_strided_tables(provider, device):
    """``tokens`` and ``committed_depth`` may be columns of a larger table."""
    state = sequence([1, 5, 6], [5, 6, 7], [True, False, True])
    want = pack([state], device=device)
    wants = advance_wavefront(**want, backend=provider)
    got = pack([state], device=device)
    width = got["tokens"].size(1)
    for name in ("tokens", "committed_depth"):
        wide = torch.full((1, width + 4), 77, dtype=got[name].dtype, device=device)
        wide[:, 2:-2] = got[name]
        got[name] = wide[:, 2:-2]
    gots = advance_wavefront(**got, backend=provider)
    for a, b in zip((*wants, *want.values()), (*gots, *got.values()), strict=True):
        assert torch.equal(a, b)
    assert got["tokens"]._base[0, [0, 1, -2, -1]].tolist() == [77] * 4


def valid(device):
    return pack([sequence([1, 5], [5, 6], [True, False], limit=9)], [2], device=device)


def zeros(*shape, dtype):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("tokens", zeros(9, dtype=torch.int64), r"int64\[\*, \*\].*, got int64\[9\] on"),
        ("start", zeros(2, dtype=torch.int32), r"int32\[1\] on .*, got int32\[2\] on"),
        ("start", zeros(1, dtype=torch.int64), r"int32\[1\] on .*, got int64\[1\] on"),
        ("done", zeros(2, dtype=torch.bool), r"bool\[1\] on .*, got bool\[2\] on"),
        ("done", zeros(1, dtype=torch.int32), r"bool\[1\] on .*, got int32\[1\] on"),
        (
            "committed_depth",
            zeros(1, 3, dtype=torch.int32),
            r"int32\[1, 10\] on .*, got .*\[1, 3\]",
        ),
        ("committed_depth", zeros(1, 10, dtype=torch.int64), r"int32\[1, 10\] on .*, got int64"),
        ("sampled", zeros(dtype=torch.int64), r"int64\[\*\] on .*, got int64\[\] on"),
        ("sampled", zeros(2, 1, dtype=torch.int64), r"int64\[\*\] on .*, got int64\[2, 1\] on"),
        ("sampled", zeros(2, dtype=torch.int32), r"int64\[\*\] on .*, got int32\[2\] on"),
        ("settled", zeros(3, dtype=torch.bool), r"bool\[2\] on .*, got bool\[3\] on"),
        ("settled", zeros(2, dtype=torch.int32), r"bool\[2\] on .*, got int32\[2\] on"),
        ("depth", zeros(3, dtype=torch.int32), r"int32\[2\] on .*, got int32\[3\] on"),
        ("depth", zeros(2, dtype=torch.int64), r"int32\[2\] on .*, got int64\[2\] on"),
        ("cu_rows", zeros(3, dtype=torch.int32), r"int32\[2\] on .*, got int32\[3\] on"),
        ("cu_rows", zeros(2, dtype=torch.int64), r"int32\[2\] on .*, got int64\[2\] on"),
        ("limit", zeros(2, dtype=torch.int32), r"int32\[1\] on .*, got int32\[2\] on"),
        ("limit", zeros(1, dtype=torch.int64), r"int32\[1\] on .*, got int64\[1\] on"),
        ("stop_tokens", zeros(1, 1, dtype=torch.int64), r"int64\[\*\] on .*, got int64\[1, 1\]"),
        ("stop_tokens", zeros(1, dtype=torch.int32), r"int64\[\*\] on .*, got int32\[1\] on"),
        ("headway", 0, "at least 1, got 0"),
        ("max_wavefront", 0, "at least 1, got 0"),
    ],
)
def test_bad_input(argument, value, message, provider, device):
    value = value.to(device) if isinstance(value, torch.Tensor) else value
    function = partial(advance_wavefront, backend=provider)
    assert_refused(OP, function, valid(device), argument, value, message)


def test_bad_dtype():
    tokens = zeros(1, 10, dtype=torch.int32)
    message = r"int64\[\*, \*\]( on cpu)?, got int32\[1, 10\]"
    assert_refused(OP, advance_wavefront, valid("cpu"), "tokens", tokens, message)


@pytest.mark.parametrize("argument", list(valid("cpu"))[1:])
def test_bad_device(argument):
    function = partial(advance_wavefront, backend="eager")
    value = valid("cpu")[argument].to("meta")
    assert_refused(OP, function, valid("cpu"), argument, value, ".* on cpu, got .* on meta")
