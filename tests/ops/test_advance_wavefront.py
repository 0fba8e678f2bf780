"""``advance_wavefront`` against a slow model of one sequence, and examples by name."""

from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rdkernels.errors import ArgumentError
from rdkernels.ops import OPS, advance_wavefront
from tests.support.checking import assert_refused, check_operator
from tests.support.wavefront_case import FRESH, GARBAGE, check, check_out, pack, sequence
from tests.support.wavefront_model import Row, Sequence

OP = "advance_wavefront"

# Random states.


@st.composite
def random_sequence(draw, headway_room):
    start = draw(st.integers(0, 6))
    length = draw(st.integers(0, 6))
    # The last row is at most at limit - 2: it predicts the last token that may be.
    limit = start + max(length, 1) + 1 + draw(st.integers(0, headway_room))
    known = draw(st.one_of(st.just(start + 1), st.integers(1, limit)))
    token = st.integers(0, 3)
    tokens = dict(enumerate(draw(st.lists(token, min_size=limit, max_size=limit))))
    rows = []
    for position in range(start, start + length):
        sampled = draw(token)
        if draw(st.integers(0, 3)):
            sampled = tokens[position + 1]  # as drafts mostly are: the next row consumed it
        settled = draw(st.integers(0, 3)) > 0
        rows.append(Row(position, sampled, settled, draw(st.integers(0, 64))))
    done = not length and draw(st.booleans())
    return Sequence(tokens, start, limit, known, draw(st.integers(-9, 9)), done, rows)


@st.composite
def random_call(draw):
    headway = draw(st.integers(1, 4))
    return {
        "sequences": draw(st.lists(random_sequence(headway + 2), max_size=4)),
        "stop_tokens": draw(st.lists(st.integers(0, 5), max_size=2)),
        "headway": headway,
        "restart": draw(st.booleans()),
    }


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(call=random_call(), max_wavefront=st.integers(1, 8), padding=st.integers(0, 3))
def test_random_states(provider, device, call, max_wavefront, padding):
    options = {"max_wavefront": max_wavefront, "padding": padding}
    check(provider=provider, device=device, **call, **options)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(call=random_call(), capacity=st.integers(0, 20))
def test_outputs_of_any_number_of_rows(provider, device, call, capacity):
    """More than can be needed, just enough, or too few: then next_cu_rows tells."""
    check_out(provider=provider, device=device, capacity=capacity, **call)


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


def test_known_tokens_are_not_sampled(provider, device):
    """Positions 3 and 4 are given: samples 7 and 2 there are ignored, a stop token as well."""
    state = sequence([1, 5, 6], [7, 2, 8], [True] * 3, known=5)
    (after,), (sources,) = check([state], provider, device, stop_tokens=[2, 5])
    assert not after.done and after.start == 5 and sources == [FRESH]
    assert [after.tokens[p] for p in (3, 4, 5)] == [5, 6, 8]
    assert after.committed_depth == {5: 4}, "only token 5 was decided by a row"


@pytest.mark.parametrize("restart", [False, True])
def test_front_runs_through_known_tokens(restart, provider, device):
    """Fresh rows consume what is given; past it they start from the token before them."""
    state = sequence([1], [5], [False], known=5, given=[7, 8])
    options = {"headway": 4, "max_wavefront": 3, "restart": restart}
    (after,), (sources,) = check([state], provider, device, **options)
    assert sources == [0] + [FRESH] * 4
    assert [after.tokens[p] for p in (2, 3, 4, 5, 6)] == [1, 7, 8, 8, 8]


def test_rows_in_the_prompt_are_not_counted(provider, device):
    """Rows at 2 and 3 are before known - 1 = 4: with a wavefront of 1 there is room at 4."""
    state = sequence([1, 7], [5, 5], [False, False], known=5, given=[8])
    (_,), (sources,) = check([state], provider, device, headway=3, max_wavefront=1)
    assert sources == [0, 1, FRESH]
    state = sequence([1, 7, 8], [5, 5, 5], [False] * 3, known=5)
    (_,), (sources,) = check([state], provider, device, headway=3, max_wavefront=1)
    assert sources == [0, 1, 2]


def test_a_known_prompt_up_to_the_limit(provider, device):
    state = sequence([1, 5], [5, 6], [True, True], limit=5, known=5, given=[8])
    (after,), (sources,) = check([state], provider, device)
    assert after.done and sources == [] and after.tokens[4] == 8 and not after.committed_depth


def test_restart_keeps_right_drafts(provider, device):
    state = sequence([1, 5, 6], [5, 9, 7], [True, False, False])
    (after,), (sources,) = check([state], provider, device, restart=True)
    assert after.start == 3 and sources == [1, 2, FRESH]
    assert [after.tokens[p] for p in (3, 4, 5)] == [5, 6, 7], "what row 2 consumed stays"


def test_restart_drops_wrong_drafts(provider, device):
    """Row 0 decides 4 where row 1 consumed 5: rows 1 and 2 are void, and position 3 is fresh."""
    state = sequence([1, 5, 6], [4, 6, 7], [True, True, True])
    (after,), (sources,) = check([state], provider, device, headway=2, restart=True)
    assert after.start == 3 and sources == [FRESH, FRESH]
    assert [after.tokens[p] for p in (3, 4)] == [4, 4]


def test_restart_waits_for_the_row_to_be_final(provider, device):
    """Nothing committed: a sample that differs may be a draft that is still wrong itself."""
    state = sequence([1, 5], [4, 6], [False, True])
    (after,), (sources,) = check([state], provider, device, restart=True)
    assert after.start == 2 and sources == [0, 1, FRESH] and after.tokens[3] == 5


def test_restart_stops(provider, device):
    """The decided stop token replaces the draft that the next row consumed."""
    state = sequence([1, 5, 6], [2, 6, 7], [True, True, True])
    (after,), (sources,) = check([state], provider, device, stop_tokens=[2], restart=True)
    assert after.done and after.tokens[3] == 2 and sources == []


def test_fresh_rows_name_the_row_before_them(provider, device):
    """The front; where rows are dropped, the last committed row."""
    for restart, tokens, want in ((False, [5, 6], [1, -2]), (True, [4, 6], [-1])):
        arguments = pack([sequence([1, 5], tokens, [True, False])], device=device)
        source = advance_wavefront(**arguments, restart=restart, backend=provider)[1]
        assert source.tolist() == want + [-1] * (3 - len(want))


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
    known, ids = start + 1, torch.tensor([7, 8], dtype=torch.int32, device=device)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    for _ in range(40):
        depth = depth + 4
        sampled = torch.full_like(depth, 6, dtype=torch.int64)
        cu_rows, _, _, _, keys = advance_wavefront(
            tokens, start, done, depths, sampled, depth >= 8, depth, cu_rows, limit, known, ids,
            none, headway=2, max_wavefront=4, backend=provider,
        )  # fmt: skip
        depth = keys[: cu_rows[-1], 2].contiguous()
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


def test_operator():
    states = [
        sequence([1, 5], [5, 6], [True, False]),
        sequence([1, 2], [2, 6], [True, True], start=0),
    ]
    full = (*pack(states, [2], padding=2).values(), 2, 8, True)
    empty = (*pack([]).values(), 1, 8, False)
    check_operator(OP, full, empty)


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
        ("known", zeros(2, dtype=torch.int32), r"int32\[1\] on .*, got int32\[2\] on"),
        ("known", zeros(1, dtype=torch.int64), r"int32\[1\] on .*, got int64\[1\] on"),
        ("sequence_ids", zeros(2, dtype=torch.int32), r"int32\[1\] on .*, got int32\[2\] on"),
        ("sequence_ids", zeros(1, dtype=torch.int64), r"int32\[1\] on .*, got int64\[1\] on"),
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


@pytest.mark.parametrize(
    ("output", "value"),
    [
        ("next_cu_rows", zeros(3, dtype=torch.int32)),
        ("source_row", zeros(5, dtype=torch.int64)),
        ("committed", zeros(2, dtype=torch.int32)),
        ("row_tokens", zeros(4, dtype=torch.int64)),
        ("row_tokens", zeros(5, dtype=torch.int32)),
        ("row_keys", zeros(4, 3, dtype=torch.int32)),
        ("row_keys", zeros(5, 2, dtype=torch.int32)),
    ],
)
def test_bad_outputs(output, value):
    outputs = {
        "next_cu_rows": zeros(2, dtype=torch.int32),
        "source_row": zeros(5, dtype=torch.int32),
        "committed": zeros(1, dtype=torch.int32),
        "row_tokens": zeros(5, dtype=torch.int64),
        "row_keys": zeros(5, 3, dtype=torch.int32),
    }
    arguments, op = (*valid("cpu").values(), 1, 8, False), OPS[OP]
    op.out(*arguments, **outputs)
    for function in (op.out, op.eager_out):
        with pytest.raises((ArgumentError, ValueError), match=f"^{OP}: "):
            function(*arguments, **(outputs | {output: value}))
