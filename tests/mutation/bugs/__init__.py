"""The list, by kernel."""

from __future__ import annotations

from tests.mutation.bug import Bug
from tests.mutation.bugs import attention, random_numbers, rows, sampling, wavefront

BUGS: tuple[Bug, ...] = (
    *attention.BUGS,
    *rows.BUGS,
    *random_numbers.BUGS,
    *sampling.BUGS,
    *wavefront.BUGS,
)
