"""Which provider would serve an op, and why the others cannot."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

import torch

from rdkernels.errors import ArgumentError
from rdkernels.ops._registry import OPS, choose, reasons, refusal

# Ops whose tensors are all integers are looked up by this dtype, one that all kernels have.
_INTEGER_OPS = {"advance_wavefront": torch.float32}


@dataclass(frozen=True)
class OpReport:
    """Who serves one op.

    Attributes:
        op, device, dtype: what was asked for, e.g. ``swiglu``, ``cpu``, ``bfloat16``.
        reasons: per provider, in order of preference, None if it can serve, else why it cannot.
        forced: the provider that an argument or ``RDKERNELS_BACKEND`` forces, or None.
        chosen: the provider that serves a call; None if the call raises.
        error: the message that the call raises, or None.
    """

    op: str
    device: str
    dtype: str
    reasons: dict[str, str | None]
    forced: str | None
    chosen: str | None
    error: str | None

    def to_json(self) -> dict[str, object]:
        """Plain values, ready for ``json.dumps``."""
        return asdict(self)


def report(
    op: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    backend: str | None = None,
) -> list[OpReport]:
    """For every op, or for ``op``: which provider serves a call and why the others cannot.

    This is what a call that autograd does not record would do; one that it records goes to eager.

    Args:
        op: name of one op, or None for all.
        device: of the call's tensors; an index is ignored.
        dtype: of the call's floating tensors.
        backend: force ``native``, ``triton`` or ``eager``; default ``RDKERNELS_BACKEND``.

    Raises:
        ArgumentError: there is no such op, or no such kind of device.
    """
    if op is not None and op not in OPS:
        raise ArgumentError("report", "op", f"one of {', '.join(sorted(OPS))}", repr(op))
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ArgumentError("report", "device", "a torch device", repr(device)) from error
    forced = backend or os.environ.get("RDKERNELS_BACKEND") or None
    return [_report(name, kind, dtype, forced) for name in ([op] if op else sorted(OPS))]


def _report(op: str, device: str, dtype: torch.dtype, forced: str | None) -> OpReport:
    key = (device, _INTEGER_OPS.get(op, dtype))
    error = None
    try:
        chosen = choose(op, forced, *key)
        if chosen is None:
            error = refusal(op, forced, *key)
    except ArgumentError as unknown:  # no provider of that name
        chosen, error = None, str(unknown)
    name = str(dtype).removeprefix("torch.")
    return OpReport(op, device, name, reasons(op, *key), forced, chosen, error)
