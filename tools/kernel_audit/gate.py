"""A committed table of what kernels take, and what is worse than it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tools.cuda_toolkit import BuildError

SCHEMA = 1


class CannotMeasure(BuildError):
    """Nothing can be measured here; the message says what is missing."""


class Resources(Protocol):
    """What one kernel takes on one architecture: a dataclass of numbers."""

    def faults(self, kernel: str) -> Iterator[str]:
        """What is wrong with that by itself, whatever was committed."""
        ...


@dataclass
class Measurement:
    """Kernels by name and architecture ("sm_90a").

    Attributes:
        release: of the compiler.
        archs: those that were compiled for.
        problems: what is wrong beside the resources.
        notes: what was not looked at, and why; a table with notes is not committed.
        complete: every kernel was looked at.
    """

    release: str
    archs: tuple[str, ...]
    kernels: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = True


@dataclass(frozen=True)
class Gate:
    """One committed table.

    Attributes:
        table: its file.
        compiler: whose release it names. Another release allocates differently, so the fields
            below are compared only with the one that the table was made with.
        at_most: fields that may not grow, with the words for them.
        at_least: fields that may not shrink.
    """

    table: Path
    compiler: str
    at_most: Mapping[str, str]
    at_least: Mapping[str, str]

    def committed(self) -> dict[str, Any]:
        return json.loads(self.table.read_text())

    def is_comparable(self, now: Measurement, committed: Mapping[str, Any]) -> bool:
        return committed[self.compiler] == now.release

    def regressions(self, now: Measurement, committed: Mapping[str, Any]) -> list[str]:
        """In words, everything about ``now`` that is wrong or worse than committed."""
        problems = list(now.problems)
        comparable = self.is_comparable(now, committed)
        for name, by_arch in sorted(now.kernels.items()):
            for arch, resources in by_arch.items():
                found = list(resources.faults(name))
                known = committed["kernels"].get(name, {}).get(arch)
                if known is None:
                    found.append(f"not in {self.table.name}; run --update and review the change")
                elif comparable:
                    found += self._worse(asdict(resources), known)
                problems += [f"{arch} {name}: {problem}" for problem in found]
        return problems

    def _worse(self, now: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[str]:
        for fields, sign in ((self.at_most, 1), (self.at_least, -1)):
            for name, words in fields.items():
                if sign * (now[name] - known[name]) > 0:
                    yield f"{now[name]} {words}, {known[name]} committed"

    def vanished(self, now: Measurement, committed: Mapping[str, Any]) -> list[str]:
        """Committed kernels that are no longer there: the table is stale."""
        return [
            f"{arch} {name}: in {self.table.name}, but no longer compiled; run --update"
            for name, by_arch in committed["kernels"].items()
            for arch in by_arch
            if now.complete and arch in now.archs and arch not in now.kernels.get(name, {})
        ]

    def to_json(self, now: Measurement) -> str:
        """The committed form: sorted, one kernel and architecture per line."""
        kernels = []
        for name, by_arch in sorted(now.kernels.items()):
            records = (
                f'   "{arch}": ' + json.dumps({k: v for k, v in asdict(r).items() if v is not None})
                for arch, r in by_arch.items()
            )
            kernels.append(f'  "{name}": {{\n' + ",\n".join(records) + "\n  }")
        head = f' "schema": {SCHEMA},\n "{self.compiler}": "{now.release}",\n'
        return f'{{\n{head} "kernels": {{\n' + ",\n".join(kernels) + "\n }\n}\n"
