"""One iteration of the core block, and one whole outer step, for every provider."""

from __future__ import annotations

import torch

from bench.gpu.graphs import capture
from bench.gpu.random_model import random_model
from bench.gpu.session import NO_TIMES, Session, rates
from bench.random_models import full_wavefronts
from rdkernels import ops
from rdkernels.errors import RdkernelsError
from rdkernels.models.blocks import Rows
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.ops import BACKENDS
from rdkernels.wavefront import Wavefront

INNER_RECURRENCE = 4


def run(session: Session, copy_bandwidth: float | None) -> dict[str, list[dict]]:
    """The sections ``core_iteration`` and ``outer_step``, on one model."""
    report: dict[str, list[dict]] = {"core_iteration": [], "outer_step": []}
    with torch.no_grad():
        model = random_model(session)
        for backend in (None, *BACKENDS):  # None: per op the best provider that serves it
            model.backend = backend
            if reason := cannot_serve(model):
                for records in report.values():
                    records.append({"provider": backend, "reason": reason, **NO_TIMES})
                continue
            for batch, rows in session.wavefronts:
                shape = (session, model, batch, rows, copy_bandwidth)
                report["core_iteration"] += core_iteration(*shape)
                report["outer_step"].append(outer_step(*shape))
                session.free_memory()
    return report


def cannot_serve(model: RecurrentDepthModel) -> str | None:
    """Why the model's provider cannot run it, or None."""
    try:
        ops.bind(model.weights.embedding, model.backend)
    except RdkernelsError as error:
        return str(error)
    return None


def _kv_bytes(session: Session, batch: int, rows: int, layers: int) -> int:
    """K/V of the past read once, those of the rows written once."""
    c = session.config
    cell = 2 * c.kv_heads * c.head_dim * session.dtype.itemsize
    return layers * batch * (session.context + rows) * cell


def core_iteration(
    session: Session,
    model: RecurrentDepthModel,
    batch: int,
    rows: int,
    copy_bandwidth: float | None,
) -> list[dict]:
    """Two records: launched kernel by kernel, and replayed as a CUDA graph."""
    length = session.context + rows
    cache = model.new_cache(batch, length)
    for b in range(batch):
        cache.reserve(b, length)
    for layer in cache.core:  # a context of zeros would be easier than any real one
        layer.key.normal_()
        layer.value.normal_()
    front = Wavefront.from_lengths([session.context] * batch, [rows] * batch, session.device)
    where: Rows = model.rows(front, cache.core_page_table(0))
    inputs = session.random(batch * rows, 2 * session.config.width)
    moved = model.parameter_bytes("core") + _kv_bytes(session, batch, rows, len(cache.core))

    def record(graph: bool) -> dict:
        def call() -> torch.Tensor:
            return model.iterate(inputs, where, cache)

        times, reason = dict(NO_TIMES), None
        try:
            if not call().isfinite().all():
                raise RuntimeError("the states are not finite")
            times = session.time_cold(capture(call, session) if graph else call)
        except (RdkernelsError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
        names = {"provider": model.backend or "best", "batch": batch, "rows": rows, "graph": graph}
        return {**names, "reason": reason, **times, **rates(moved, times, copy_bandwidth)}

    return [record(graph=False), record(graph=True)]


def outer_step(
    session: Session,
    model: RecurrentDepthModel,
    batch: int,
    rows: int,
    copy_bandwidth: float | None,
) -> dict:
    """Wall time of ``WavefrontLoop.step`` with all wavefronts full and nothing ever committed."""
    times, reason = dict(NO_TIMES), None
    try:
        loop = full_wavefronts(model, batch, session.context, rows, INNER_RECURRENCE)
        times = session.time_wall(loop.step)
        if loop.num_rows != batch * rows:
            raise RuntimeError(f"{loop.num_rows} rows in flight, not {batch * rows}")
    except (RdkernelsError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
    c = session.config
    layers = c.prelude_layers + c.coda_layers + INNER_RECURRENCE * c.core_layers
    moved = model.parameter_bytes() + (INNER_RECURRENCE - 1) * model.parameter_bytes("core")
    moved += _kv_bytes(session, batch, rows, layers)
    names = {"provider": model.backend or "best", "batch": batch, "rows": rows, "graph": False}
    names["inner_recurrence"] = INNER_RECURRENCE
    return {**names, "reason": reason, **times, **rates(moved, times, copy_bandwidth)}
