"""Outer steps of fixed shapes: row counts in buckets, on a GPU captured once and replayed.

A wavefront grows and shrinks all the time. With its rows padded to the next bucket, an outer step
of one bucket is always the same list of launches on the same memory. On CUDA that list is captured
as a graph; elsewhere it runs as it is, so that the padded path is tested without a GPU.
"""

from __future__ import annotations

from dataclasses import fields

import torch

from rdkernels.errors import ArgumentError, is_whole
from rdkernels.samplers.schedule import Phase
from rdkernels.samplers.step import OuterStepProgram

# Half as much again per step: padding costs at most a third of the rows, and graphs stay few.
DEFAULT_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def bucket_of(rows: int, buckets: tuple[int, ...]) -> int:
    """The smallest bucket that holds ``rows``; beyond the largest, its next multiple."""
    for bucket in buckets:
        if rows <= bucket:
            return bucket
    return -(-rows // buckets[-1]) * buckets[-1]


def checked_buckets(where: str, buckets: tuple[int, ...]) -> tuple[int, ...]:
    """``buckets`` as ascending positive row counts, or an :class:`ArgumentError`."""
    rows = tuple(buckets)
    rising = all(is_whole(b) and b > a for a, b in zip((0, *rows), rows, strict=False))
    if not rows or not rising:
        raise ArgumentError(where, "buckets", "ascending positive row counts", repr(buckets))
    return rows


class StaticSteps:
    """Runs a program's outer steps at bucketed row counts.

    Attributes:
        captured: graphs held, one per bucket, phase and kind of step.
    """

    def __init__(self, program: OuterStepProgram, buckets: tuple[int, ...]) -> None:
        self.program, self.buckets = program, buckets
        self.captured: dict[tuple, torch.cuda.CUDAGraph] = {}
        self._generation = -1

    def rows(self, num_rows: int) -> int:
        """Rows that a step of ``num_rows`` real ones computes."""
        return bucket_of(num_rows, self.buckets)

    def run(self, num_rows: int, phase: Phase, *, has_fresh_rows: bool) -> None:
        """As :meth:`OuterStepProgram.run`, for a row count that is a bucket."""
        program = self.program
        if program.model.device.type != "cuda":
            return program.run(num_rows, phase, has_fresh_rows=has_fresh_rows)
        if self._generation != program.buffers.generation:
            self.captured.clear()  # they address memory that is gone
            self._generation = program.buffers.generation
        kind = (num_rows, phase, has_fresh_rows)
        if kind not in self.captured:
            self.captured[kind] = self._capture(num_rows, phase, has_fresh_rows)
        self.captured[kind].replay()
        program.iterations = phase.iterations
        return None

    def _capture(self, num_rows: int, phase: Phase, has_fresh_rows: bool) -> torch.cuda.CUDAGraph:
        """Record an outer step. It runs once before, as lazily loaded kernels must have."""
        kept = [(tensor, tensor.clone()) for tensor in self._written()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.program.run(num_rows, phase, has_fresh_rows=has_fresh_rows)
        torch.cuda.current_stream().wait_stream(stream)
        for tensor, before in kept:  # K/V need not be kept: the replay writes the same again
            tensor.copy_(before)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.program.run(num_rows, phase, has_fresh_rows=has_fresh_rows)
        return graph

    def _written(self) -> list[torch.Tensor]:
        """What an outer step changes and the next one reads."""
        s, rows = self.program.sequences, self.program.buffers.whole
        owned = [getattr(s, field.name) for field in fields(s)]
        return [t for t in (*owned, *rows, self.program.buffers.report) if t is not None]
