"""One iteration of the core block, and one whole outer step: every provider, graphs on and off."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from bench.gpu.graphs import capture
from bench.gpu.session import NO_TIMES, Session, rates
from bench.random_models import core_iterations, full_wavefronts, random_model
from rdkernels import ops
from rdkernels.errors import RdkernelsError
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.ops import BACKENDS
from rdkernels.runtime.graphs import reads_back

INNER_RECURRENCE = 4
NO_SHAPE = {"batch": None, "rows": None, "graph": None}  # of a provider that cannot serve


class Shape(NamedTuple):
    """What is measured: ``rows`` of each of ``batch`` sequences, launched or replayed."""

    batch: int
    rows: int
    graph: bool


def run(session: Session, copy_bandwidth: float | None) -> dict[str, list[dict]]:
    """The sections ``core_iteration`` and ``outer_step``, on the weights of one model."""
    report: dict[str, list[dict]] = {"core_iteration": [], "outer_step": []}
    shapes = [Shape(*shape, graph) for shape in session.wavefronts for graph in (False, True)]
    with torch.no_grad():
        best = random_model(session.config, None, session.device, session.dtype)
        for backend in (None, *BACKENDS):  # None: per op the best provider that serves it
            model = RecurrentDepthModel(best.config, best.weights, backend=backend)
            refusal = cannot_serve(session, backend)
            for shape in shapes if refusal is None else [None]:
                for section, measure in MEASURES.items():
                    names = {
                        "provider": backend or "best",
                        **(shape._asdict() if shape else NO_SHAPE),
                    }
                    reason, moved, times = measured(session, model, measure, shape, refusal)
                    speed = {**times, **rates(moved, times, copy_bandwidth)}
                    report[section].append({**names, "reason": reason, **speed})
                    session.free_memory()
    for record in report["outer_step"]:
        record["inner_recurrence"] = INNER_RECURRENCE
    return report


def measured(
    session: Session,
    model: RecurrentDepthModel,
    measure: Measure,
    shape: Shape | None,
    refusal: str | None,
) -> tuple[str | None, int | None, dict[str, float | None]]:
    """Why there are no times, bytes that have to move, times."""
    if shape and shape.graph and reads_back(model):
        refusal = "the eager ops read sizes back to the host, which no graph can hold"
    if refusal is not None or shape is None:
        return refusal, None, dict(NO_TIMES)
    try:
        return None, *measure(session, model, shape)
    except (RdkernelsError, RuntimeError) as error:  # the other shapes may still fit
        return str(error).splitlines()[0], None, dict(NO_TIMES)


def ops_of_a_step() -> tuple[str, ...]:
    """What the model and its loop call on a GPU."""
    return tuple(name for name, op in ops.OPS.items() if op.cpu_only is None)


def cannot_serve(session: Session, backend: str | None) -> str | None:
    """Why a provider cannot run the model, or None."""
    if backend is None:
        return None
    for op in ops_of_a_step():
        dtype = ops.OPS[op].looked_up_by(session.dtype)
        if reason := ops.reasons(op, session.device.type, dtype)[backend]:
            return f"{op}: {reason}"
    return None


def _kv_bytes(session: Session, batch: int, rows: int, layers: int) -> int:
    """K/V of the past read once, those of the rows written once."""
    c = session.config
    cell = 2 * c.num_kv_heads * c.head_dim * session.dtype.itemsize
    return layers * batch * (session.context + rows) * cell


def core_iteration(
    session: Session, model: RecurrentDepthModel, shape: Shape
) -> tuple[int, dict[str, float | None]]:
    """Device time of one iteration behind ``session.context`` positions; cold L2 cache."""
    batch, rows, graph = shape
    call = core_iterations(model, batch, session.context, rows)
    times = session.time_cold(capture(call, session) if graph else call)
    moved = model.parameter_bytes("core") + _kv_bytes(
        session, batch, rows, model.config.core_layers
    )
    return moved, times


def outer_step(
    session: Session, model: RecurrentDepthModel, shape: Shape
) -> tuple[int, dict[str, float | None]]:
    """Wall time of ``WavefrontLoop.step``: all wavefronts full, and nothing is ever committed."""
    batch, rows, graph = shape
    buckets = (batch * rows,) if graph else None
    loop = full_wavefronts(model, batch, session.context, rows, INNER_RECURRENCE, buckets)
    times = session.time_wall(loop.step)
    if loop.num_rows != batch * rows:
        raise RuntimeError(f"{loop.num_rows} rows in flight, not {batch * rows}")
    c = session.config
    layers = c.prelude_layers + c.coda_layers + INNER_RECURRENCE * c.core_layers
    moved = model.parameter_bytes() + (INNER_RECURRENCE - 1) * model.parameter_bytes("core")
    return moved + _kv_bytes(session, batch, rows, layers), times


Measure = Callable[
    [Session, RecurrentDepthModel, Shape],
    tuple[int, dict[str, float | None]],
]
MEASURES: dict[str, Measure] = {"core_iteration": core_iteration, "outer_step": outer_step}
