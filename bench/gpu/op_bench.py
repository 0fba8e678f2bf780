"""Microbenchmarks of every op and provider, with a cold L2 cache and a correctness gate."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from bench.correctness import wrong
from bench.gpu.session import NO_TIMES, Session, rates
from bench.op_cases import OF_ROWS, attention, providers, serve, sized_cases
from cases import OpCase

TIMED_ROWS = (1, 8, 32, 128)


def timed_cases(session: Session) -> Iterator[OpCase]:
    """Every op at the sizes that decoding has; one at a time, for they are large."""
    for batch, rows in session.wavefronts:
        yield attention(session, batch, rows)
    sizes = [(1, rows) for rows in (session.rows if session.dry_run else TIMED_ROWS)]
    many = [(batch, session.batch_rows) for batch in session.batches]
    for op, size in (*product(OF_ROWS, sizes), *product(("advance_wavefront",), many)):
        yield from (case for case in sized_cases(session, op, *size) if case.timed)


def run(session: Session, copy_bandwidth: float | None) -> list[dict]:
    """A record per op, case and provider; without times where the result was wrong."""
    return [
        _record(case, provider, reason, session, copy_bandwidth)
        for case in timed_cases(session)
        for provider, reason in providers(case, session.device).items()
    ]


def _record(
    case: OpCase,
    provider: str,
    reason: str | None,
    session: Session,
    copy_bandwidth: float | None,
) -> dict:
    times, correct = dict(NO_TIMES), None
    if reason is None:
        reason = wrong(case, provider)
        correct = reason is None
    if correct:
        call, arguments = serve(case, provider), case.copies()
        times = session.time_cold(lambda: call(*arguments), lambda: case.restore(arguments))
    return {
        "op": case.op,
        "case": case.label,
        "provider": provider,
        "correct": correct,
        "reason": reason,
        **times,
        **rates(case.moved, times, copy_bandwidth),
        "flops": case.flops,
    }
