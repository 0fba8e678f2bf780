"""What a planted bug is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HEADERS = Path("csrc/include/rdkernels/kernels")


class PlantError(RuntimeError):
    """The bug no longer applies: the text it replaces is not there exactly once."""


@dataclass(frozen=True)
class EmulatedTests:
    """Some tests of one emulator test module.

    Attributes:
        file: under ``tests/simt``.
        source: the emulator module that they run, under ``tests/simt``.
        select: pytest's ``-k`` expression; empty for all.
    """

    file: str
    source: str
    select: str = ""

    def only(self, select: str) -> EmulatedTests:
        return EmulatedTests(self.file, self.source, select)


@dataclass(frozen=True)
class Bug:
    """One mistake in one kernel.

    Attributes:
        name: unique, ``kernel/mistake``.
        file: under ``csrc/include/rdkernels/kernels``.
        old: text that occurs there exactly once.
        new: what stands there instead, once the bug is planted.
        breaks: what goes wrong then.
        tests: the tests that must notice.
    """

    name: str
    file: str
    old: str
    new: str
    breaks: str
    tests: EmulatedTests

    @property
    def kernel(self) -> str:
        return self.name.partition("/")[0]

    def plant(self, root: Path) -> str:
        """Changes the file under ``root``, a copy of the project, and returns its old contents.

        Raises:
            PlantError: the old text is absent, is there more than once, or is the new text.
        """
        path = root / HEADERS / self.file
        contents = path.read_text()
        count = contents.count(self.old)
        if count != 1 or self.old == self.new:
            raise PlantError(f"{self.name}: {count} times in {self.file}: {self.old!r}")
        path.write_text(contents.replace(self.old, self.new))
        return contents

    def remove(self, root: Path, contents: str) -> None:
        """Puts back what ``plant`` returned."""
        (root / HEADERS / self.file).write_text(contents)
