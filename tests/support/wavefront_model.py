"""``advance_wavefront`` a second time: one sequence, one position at a time, in plain Python.

Written from the numbered list in the docstring of ``rdkernels.ops.advance_wavefront``, with
positions in dictionaries where the op slices tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field


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
    known: int = 0
    identity: int = 0
    done: bool = False
    rows: list[Row] = field(default_factory=list)
    committed_depth: dict[int, int] = field(default_factory=dict)


@dataclass
class NextRow:
    """A row of the next outer step: it continues ``source`` or, at None, follows ``before``."""

    position: int
    token: int
    source: Row | None
    before: Row


def advance(
    sequence: Sequence, stop_tokens: set[int], headway: int, max_wavefront: int, restart: bool
) -> tuple[list[NextRow], int]:
    """Advance ``sequence``; its next rows, and how many rows were committed."""
    if not sequence.rows:
        return [], 0
    tokens, known = sequence.tokens, sequence.known
    predicted = {
        row.position + 1: tokens[row.position + 1] if row.position + 1 < known else row.sampled
        for row in sequence.rows
    }

    # 1. Commit, while rows are settled and consumed what is predicted for them now.
    committed = []
    for row in sequence.rows:
        consumed = tokens[row.position]
        if not row.settled or predicted.get(row.position, consumed) != consumed:
            break
        committed.append(row)
        decided = row.position + 1
        if decided >= known:
            sequence.committed_depth[decided] = row.depth
        # 2. Stop. Tokens 0 .. decided are committed now.
        new_stop_token = decided >= known and predicted[decided] in stop_tokens
        if new_stop_token or decided + 1 == sequence.limit:
            sequence.done = True
            break
    sequence.start += len(committed)
    in_flight = sequence.rows[len(committed) :]

    # 3. Restart or redraft.
    if restart:
        if committed and in_flight:
            position = in_flight[0].position
            if sequence.done or predicted[position] != tokens[position]:
                in_flight = []
        for row in committed + in_flight[-1:]:
            tokens[row.position + 1] = predicted[row.position + 1]
    else:
        tokens.update(predicted)
    if sequence.done:
        return [], len(committed)

    # 4. Extend.
    before = (committed + in_flight)[-1]
    positions = [row.position for row in in_flight]
    for position in range(before.position + 1, before.position + 1 + headway):
        counted = sum(p >= known - 1 for p in positions)
        if position > sequence.limit - 2 or (position >= known - 1 and counted >= max_wavefront):
            break
        positions.append(position)
        if position >= known and position != before.position + 1:
            tokens[position] = tokens[position - 1]  # neither known nor predicted
    sources = {row.position: row for row in in_flight}
    following = [NextRow(p, tokens[p], sources.get(p), before) for p in positions]
    return following, len(committed)
