"""Write the held-out ``problems.json`` of a demo model.

python -m examples.demo_training.make_problems --task automaton --out DIR [--count 256]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from examples.demo_training.tasks import TASK_WORDS, held_out, problem_record


def write_problems(task: str, folder: Path, count: int = 256) -> Path:
    """Write ``folder/problems.json``, one problem a line, and return its path."""
    lines = (json.dumps(problem_record(task, example)) for example in held_out(task, count))
    path = folder / "problems.json"
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=sorted(TASK_WORDS), required=True)
    parser.add_argument("--out", type=Path, required=True, help="an existing folder")
    parser.add_argument("--count", type=int, default=256)
    arguments = parser.parse_args()
    print(write_problems(arguments.task, arguments.out, arguments.count))


if __name__ == "__main__":
    main()
