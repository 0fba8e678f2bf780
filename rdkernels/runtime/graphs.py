"""Outer steps of fixed shapes: row counts in buckets, on a GPU captured once and replayed.

A wavefront grows and shrinks all the time. With its rows padded to the next bucket, an outer step
of one bucket is always the same list of launches on the same memory. On CUDA that list is captured
as a graph; elsewhere it runs as it is, so that the padded path is tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from rdkernels import ops
from rdkernels.errors import ArgumentError, is_whole
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.runtime.step import OuterStepProgram
from rdkernels.samplers.schedule import Phase

# Half as much again per step: padding costs at most a third of the rows, and graphs stay few.
DEFAULT_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def bucket_of(rows: int, buckets: tuple[int, ...]) -> int:
    """The smallest bucket that holds ``rows``; beyond the largest, its next multiple."""
    for bucket in buckets:
        if rows <= bucket:
            return bucket
    return -(-rows // buckets[-1]) * buckets[-1]


def checked_buckets(where: str, buckets: Sequence[int]) -> tuple[int, ...]:
    """``buckets``, which may be none, as a tuple.

    Raises:
        ArgumentError: they are not ascending positive row counts.
    """
    rows = tuple(buckets) if isinstance(buckets, Sequence) else (None,)
    rising = (is_whole(b) and b > a for a, b in pairwise((0, *rows)))
    if not all(rising):
        raise ArgumentError(where, "buckets", "ascending positive row counts", repr(buckets))
    return rows


def reads_back(model: RecurrentDepthModel) -> bool:
    """Whether outer steps take values to the host: the eager definitions of some ops do."""
    reading = (name for name, op in ops.OPS.items() if op.reads_back)
    return any(model.inference_ops.chosen(name) == "eager" for name in reading)


def can_capture(model: RecurrentDepthModel) -> bool:
    """Whether outer steps of ``model`` can become CUDA graphs."""
    return model.device.type == "cuda" and not reads_back(model)


def default_buckets(model: RecurrentDepthModel) -> tuple[int, ...]:
    """``DEFAULT_BUCKETS`` where steps are captured; elsewhere padding is nothing but work."""
    return DEFAULT_BUCKETS if can_capture(model) else ()


class StaticSteps:
    """Runs a program's outer steps at bucketed row counts.

    Attributes:
        captures: whether steps are captured and replayed; otherwise they run as they are.
        captured: graphs held, one per bucket, phase and kind of step.
    """

    def __init__(self, program: OuterStepProgram, buckets: tuple[int, ...]) -> None:
        self.program, self.buckets = program, buckets
        self.captures = can_capture(program.model)
        self.captured: dict[tuple[int, Phase, bool], torch.cuda.CUDAGraph] = {}
        self._generation = -1
        self._pool: Any = None
        program.may_look = False

    def rows(self, num_rows: int) -> int:
        """Rows that a step of ``num_rows`` real ones computes."""
        return bucket_of(num_rows, self.buckets)

    def run(self, num_rows: int, phase: Phase, *, has_fresh_rows: bool) -> None:
        """As :meth:`OuterStepProgram.run`, for a row count that is a bucket."""
        program = self.program
        if not self.captures:
            return program.run(num_rows, phase, has_fresh_rows=has_fresh_rows)
        if self._generation != program.buffers.generation:
            self.captured.clear()  # they address memory that is gone
            self._generation = program.buffers.generation
            # Graphs run one after another and keep nothing for each other: they share their memory.
            self._pool = torch.cuda.graph_pool_handle()
        kind = (num_rows, phase, has_fresh_rows or not program.policy.inputs_stay)
        if kind not in self.captured:
            self.captured[kind] = self._capture(*kind)
        self.captured[kind].replay()
        program.iterations = phase.iterations
        return None

    def _capture(self, num_rows: int, phase: Phase, embeds: bool) -> torch.cuda.CUDAGraph:
        """Record an outer step, which does not run it."""
        program = self.program
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(program.model.device):
            self._warm_up(num_rows, phase, embeds)
            with torch.cuda.graph(graph, pool=self._pool):
                program.run(num_rows, phase, has_fresh_rows=embeds)
        return graph

    def _warm_up(self, num_rows: int, phase: Phase, embeds: bool) -> None:
        """Run the step once, as lazily loaded kernels must have before they are captured.

        With nothing but padding: that commits nothing and writes no K/V, which rows that are held
        in one span would otherwise see from a later one.
        """
        program = self.program
        whole, bounds = program.buffers.whole, program.sequences.cu_rows
        carried = (whole.adapter_input, whole.source_row, whole.token, whole.key, bounds)
        kept = [tensor.clone() for tensor in carried]
        bounds.zero_()
        main, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            program.run(num_rows, phase, has_fresh_rows=embeds)
        main.wait_stream(side)
        for tensor, before in zip(carried, kept, strict=True):
            tensor.copy_(before)
