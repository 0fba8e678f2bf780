"""Every native op on the device: values, graphs, streams, and that nothing waits for the host."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bench.correctness import wrong
from bench.gpu import graphs
from bench.gpu.op_bench import timed_cases
from bench.op_cases import out_buffers, providers, serve
from bench.random_models import HUGINN
from rdkernels.ops import OPS
from tests.gpu.conftest import native_cases
from tests.support.checking import FLOAT_DTYPES, as_tuple, assert_same_bits

LONG_SLEEP = 100_000_000  # clock cycles: about 50 ms, longer than anything that is launched here


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_error_rule(session, dtype):
    for case in native_cases(dataclasses.replace(session, dtype=dtype)):
        assert (problem := wrong(case, "native")) is None, f"{case.op} ({case.label}): {problem}"


@pytest.mark.slow
def test_error_rule_at_huginn_sizes(session):
    huginn = dataclasses.replace(
        session, config=HUGINN, context=600, rows=(1, 8, 40), batches=(1, 4)
    )
    for case in timed_cases(huginn):
        if providers(case, session.device)["native"] is None:
            problem = wrong(case, "native")
            assert problem is None, f"{case.op} ({case.label}): {problem}"


def test_graph_replay_equals_launch(session):
    for case in native_cases(session):
        assert (problem := graphs.check(case, session)) is None, f"{case.op}: {problem}"


def test_nothing_waits_for_the_host(session):
    """No op reads anything back: a synchronising call raises in this mode."""
    cases = [(case, case.copies(), out_buffers(case)) for case in native_cases(session)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for case, arguments, outputs in cases:
            serve(case, "native")(*arguments)
            OPS[case.op].out(*arguments, **outputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_launches_return_before_the_device_gets_there(session):
    """Behind a long sleep on the stream, all launches return while nothing has run yet."""
    cases = [(case, case.copies()) for case in native_cases(session)]
    for case, arguments in cases:
        serve(case, "native")(*arguments)  # modules load at the first launch
    done = torch.cuda.Event()
    torch.cuda._sleep(LONG_SLEEP)
    for case, arguments in cases:
        serve(case, "native")(*arguments)
    done.record()
    assert not done.query(), "a launch waited for the device"


def test_current_stream_is_honoured(session):
    """On a side stream, behind a sleep and the copy that brings the inputs, on no other stream."""
    for case in native_cases(session):
        expected_arguments = case.copies()
        expected = as_tuple(serve(case, "native")(*expected_arguments))
        # Zeros until the stream gets to the copy: integers that are valid, floats that are wrong.
        late = tuple(
            torch.zeros_like(a) if isinstance(a, torch.Tensor) else a for a in case.arguments
        )
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.cuda._sleep(LONG_SLEEP)
            for target, source in zip(late, case.arguments, strict=True):
                if isinstance(source, torch.Tensor):
                    target.copy_(source)
            results = as_tuple(serve(case, "native")(*late))
        side.synchronize()
        for got, want in zip((*results, *late), (*expected, *expected_arguments), strict=True):
            if isinstance(want, torch.Tensor):
                assert_same_bits(got, want)


def test_two_streams_at_once(session):
    """The same op on two streams, with workspaces and outputs of their own."""
    for case in native_cases(session):
        want = as_tuple(serve(case, "native")(*case.copies()))
        streams = [torch.cuda.Stream() for _ in range(2)]
        inputs = [[case.copies() for _ in range(8)] for _ in streams]
        results: list[list[tuple[torch.Tensor, ...]]] = [[], []]
        torch.cuda.synchronize()
        for round_ in range(8):
            for number, stream in enumerate(streams):
                with torch.cuda.stream(stream):
                    call = serve(case, "native")
                    results[number].append(as_tuple(call(*inputs[number][round_])))
        torch.cuda.synchronize()
        for got in (*results[0], *results[1]):
            for a, b in zip(got, want, strict=True):
                assert_same_bits(a, b)


def test_results_repeat_bit_for_bit(session):
    for case in native_cases(session):
        first = as_tuple(serve(case, "native")(*case.copies()))
        for _ in range(5):
            for a, b in zip(as_tuple(serve(case, "native")(*case.copies())), first, strict=True):
                assert_same_bits(a, b)
