"""Microbenchmarks of every op and provider, with a cold L2 cache and a correctness gate."""

from __future__ import annotations

from bench.gpu.correctness import wrong
from bench.gpu.op_cases import providers, serve, timed_cases
from bench.gpu.session import NO_TIMES, Session, rates
from cases import OpCase


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
