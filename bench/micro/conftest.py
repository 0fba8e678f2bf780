"""Options of the microbenchmarks, and their table.

python -m pytest bench/micro --benchmark-only -q                       a small grid, under 2 minutes
python -m pytest bench/micro --benchmark-only -q --full                the complete grid
... --benchmark-json=bench.json                                   all rows, and the machine
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.machine import environment


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="benchmark the complete grid")
    parser.addoption("--threads", type=int, default=0, help="torch threads (0: torch's choice)")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--threads"):
        torch.set_num_threads(config.getoption("--threads"))


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """``--benchmark-json`` says what the numbers are worth nothing without."""
    machine_info.update(environment())


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """One line per row: time, spread, bandwidth, and how many times faster than eager."""
    session = getattr(config, "_benchmarksession", None)
    rows = [b.extra_info | {"group": b.group} for b in session.benchmarks] if session else []
    rows = [row for row in rows if "median_us" in row]
    if not rows:
        return
    eager = {row["group"]: row["median_us"] for row in rows if row["provider"] == "eager"}
    write = terminalreporter.write_line
    terminalreporter.section("rdkernels")
    write(", ".join(f"{key} {value}" for key, value in environment().items()))
    measured = {row["bandwidth"]: row["bandwidth_gb_per_s"] for row in rows}
    write(", ".join(f"{kind} bandwidth {rate:.1f} GB/s" for kind, rate in measured.items()))
    write("share: of the bandwidth of reading, or where results are as large, of copying (r+w)\n")
    head = f"{'':64}{'median':>10}{'p20':>10}{'p80':>10}{'GB/s':>8}{'share':>7}{'x eager':>9}"
    write(head)
    for row in sorted(rows, key=lambda row: (row["group"], row["provider"])):
        speedup = eager[row["group"]] / row["median_us"] if row["group"] in eager else float("nan")
        write(
            f"{row['group'] + '  ' + row['provider']:64}"
            f"{row['median_us']:8.1f}us{row['p20_us']:10.1f}{row['p80_us']:10.1f}"
            f"{row['gb_per_s']:8.1f}{row['share_of_bandwidth']:7.0%}{speedup:9.2f}"
        )
