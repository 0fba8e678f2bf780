"""The ways in which a correct kernel may be run, and must always give the same result.

Each entry is a set of keyword arguments for a module's emulated launch (see ``simt_pybind.h``).
A race, a missing barrier or a missing wait shows as a wrong result, a NaN or an error under at
least one of them.
"""

from __future__ import annotations

QUICK: dict[str, dict[str, object]] = {
    "round-robin": {},
    "greedy": {"schedule": "warp_greedy", "async_copy": "late"},
    "greedy-reverse-early": {
        "schedule": "warp_greedy_reverse",
        "order": "reverse",
        "async_copy": "early",
    },
    "interleaved": {"schedule": "round_robin", "order": "interleaved"},
}


def adversarial(seed: int, random_runs: int = 3) -> dict[str, dict[str, object]]:
    """All fixed schedules and ``random_runs`` random ones; their names carry their seeds."""
    runs = dict(QUICK)
    runs["greedy-early"] = {"schedule": "warp_greedy", "async_copy": "early"}
    runs["greedy-reverse"] = {"schedule": "warp_greedy_reverse", "async_copy": "late"}
    runs["greedy-interleaved"] = {"schedule": "warp_greedy", "order": "interleaved"}
    for i in range(random_runs):
        order = ("shuffled", "interleaved")[i % 2]
        copy = ("late", "early")[i // 2 % 2]
        runs[f"random-{i}-seed-{seed + i}"] = {
            "schedule": "random",
            "order": order,
            "async_copy": copy,
            "seed": seed + i,
        }
    return runs
