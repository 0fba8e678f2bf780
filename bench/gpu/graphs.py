"""CUDA graph capture and replay of every op: the same results as the launch, to the bit."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.gpu.session import Session
from bench.op_cases import out_buffers, providers, small_cases
from cases import OpCase
from rdkernels.ops import OPS


def capture(call: Callable[[], object], session: Session) -> Callable[[], None]:
    """``call`` as a graph; returns what replays it. A dry run calls it again instead.

    ``call`` runs twice before: allocators and lazy initialisation are not part of a graph.
    """
    if session.dry_run:
        call()
        return lambda: (call(), None)[1]
    side = torch.cuda.Stream(session.device)
    side.wait_stream(torch.cuda.current_stream(session.device))
    with torch.cuda.stream(side):
        call()
        call()
    torch.cuda.current_stream(session.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def check(case: OpCase, session: Session) -> str | None:
    """None if a replay leaves what a launch leaves, in outputs and in written arguments."""
    out_overload = OPS[case.op].out
    launched, expected = case.copies(), out_buffers(case)
    out_overload(*launched, **expected)
    replayed, outputs = case.copies(), out_buffers(case)
    replay = capture(lambda: out_overload(*replayed, **outputs), session)
    # Capturing has run the op: everything it may have written goes back to the beginning.
    for used, original in zip(replayed, case.arguments, strict=True):
        if isinstance(used, torch.Tensor):
            used.copy_(original)
    for name, poison in out_buffers(case).items():
        outputs[name].copy_(poison)
    replay()
    session.synchronize()
    for name, value in outputs.items():
        if not _same(value, expected[name]):
            return f"{name} differs between launch and replay"
    for position, (a, b) in enumerate(zip(launched, replayed, strict=True)):
        if isinstance(a, torch.Tensor) and not _same(a, b):
            return f"argument {position} differs between launch and replay"
    return None


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def run(session: Session) -> list[dict]:
    """A record per op and case that has a kernel of its own on the device."""
    records = []
    for case in small_cases(session):
        reason = None if session.dry_run else providers(case, session.device)["native"]
        record = {"op": case.op, "case": case.label, "captured": not session.dry_run}
        if reason is not None:
            records.append({**record, "captured": False, "ok": None, "reason": reason})
            continue
        try:
            problem = check(case, session)
        except RuntimeError as error:  # a capture that a synchronisation or allocation breaks
            problem = str(error).splitlines()[0]
        records.append({**record, "ok": problem is None, "reason": problem})
    return records
