"""The types in the JSON of ``bench.gpu_check``, whose docstring says what its keys mean."""

from __future__ import annotations

from collections.abc import Iterator

NUMBER, WORDS, VERDICT = (int, float, type(None)), (str, type(None)), (bool, type(None))
COUNT = (int, type(None))

TIMES = {"median_us": NUMBER, "p20_us": NUMBER, "p80_us": NUMBER}
SPEED = {**TIMES, "bytes": COUNT, "gb_per_s": NUMBER, "percent_of_copy": NUMBER}
SHAPE = {"provider": str, "batch": COUNT, "rows": COUNT, "graph": VERDICT, "reason": WORDS}

REPORT = {
    "schema": int,
    "dry_run": bool,
    "environment": dict,
    "copy_gb_per_s": NUMBER,
    "tests": dict,
    "sanitizers": list,
    "graphs": list,
    "ops": list,
    "core_iteration": list,
    "outer_step": list,
    "failures": list,
}
TESTS = {"command": str, "ok": bool, "counts": dict, "output": str}
RECORDS = {
    "sanitizers": {"tool": str, "ok": VERDICT, "reason": WORDS, "output": str},
    "graphs": {"op": str, "case": str, "captured": bool, "ok": VERDICT, "reason": WORDS},
    "ops": {
        **{"op": str, "case": str, "provider": str, "correct": VERDICT, "reason": WORDS},
        **SPEED,
        "flops": int,
    },
    "core_iteration": {**SHAPE, **SPEED},
    "outer_step": {**SHAPE, **SPEED, "inner_recurrence": int},
}


def violations(report: dict) -> Iterator[str]:
    """What is missing, not foreseen or of another type in a report of all sections."""
    yield from _violations("report", report, REPORT)
    yield from _violations("tests", report.get("tests", {}), TESTS)
    for section, keys in RECORDS.items():
        for number, record in enumerate(report.get(section, ())):
            yield from _violations(f"{section}[{number}]", record, keys)
    for number, failure in enumerate(report.get("failures", ())):
        if not isinstance(failure, str):
            yield f"failures[{number}]: {failure!r}"


def _violations(where: str, found: dict, keys: dict) -> Iterator[str]:
    for name in sorted(keys.keys() ^ found.keys()):
        yield f"{where}: {name} is {'missing' if name in keys else 'not foreseen'}"
    for name in keys.keys() & found.keys():
        # bool is an int to Python, and no count.
        if not isinstance(found[name], keys[name]) or (
            isinstance(found[name], bool) and keys[name] in (NUMBER, COUNT, int)
        ):
            yield f"{where}: {name} is {found[name]!r}"
