"""``advance_wavefront`` a second time: one sequence, one position at a time, in plain Python.

Written from the numbered list in the docstring of ``rdkernels.ops.advance_wavefront``, with
positions in dictionaries where the op slices tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FRESH = -1


@dataclass
class Row:
    """A row in flight: what its position consumed and predicts, and what the freeze rule says."""

    position: int
    sampled: int
    settled: bool
    depth: int


@dataclass
class Sequence:
    """One sequence between two outer steps; ``rows`` are those just computed."""

    tokens: dict[int, int]  # by position; committed ones and drafts
    start: int
    limit: int
    done: bool = False
    rows: list[Row] = field(default_factory=list)
    committed_depth: dict[int, int] = field(default_factory=dict)


def advance(
    sequence: Sequence, stop_tokens: set[int], headway: int, max_wavefront: int
) -> tuple[list[int], int]:
    """Advance ``sequence``; what the next rows continue (an index or FRESH), rows committed."""
    if not sequence.rows:
        return [], 0
    predicted = {row.position + 1: row.sampled for row in sequence.rows}

    # 1. Commit, while rows are settled and consumed what is predicted for them now.
    committed = []
    for row in sequence.rows:
        consumed = sequence.tokens[row.position]
        if not row.settled or predicted.get(row.position, consumed) != consumed:
            break
        committed.append(row)
        sequence.committed_depth[row.position + 1] = row.depth
        # 2. Stop.
        tokens_committed = row.position + 2  # positions 0 .. row.position + 1
        if row.sampled in stop_tokens or tokens_committed == sequence.limit:
            sequence.done = True
            break
    sequence.start += len(committed)

    # 3. Redraft.
    sequence.tokens.update(predicted)
    if sequence.done:
        return [], len(committed)

    # 4. Extend.
    following = list(range(len(committed), len(sequence.rows)))
    front = sequence.rows[-1].position + 1
    for position in range(front, front + headway):
        if len(following) < max_wavefront and position <= sequence.limit - 2:
            following.append(FRESH)
            sequence.tokens[position] = sequence.tokens[front]
    return following, len(committed)
