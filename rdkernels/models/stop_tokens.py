"""The stop tokens that a model folder declares."""

from __future__ import annotations

import json
from pathlib import Path

from rdkernels.errors import CheckpointError
from rdkernels.models.demo import DEMO_MODELS


def default_stop_tokens(path: str | Path) -> tuple[int, ...]:
    """``eos_token_id`` of ``generation_config.json``, else of ``config.json``, else none.

    Args:
        path: a model folder or the name of a demo model.

    Raises:
        CheckpointError: the file is not JSON, or the entry is not an id or a list of ids.
    """
    folder = DEMO_MODELS.get(str(path)) or Path(path)
    for file in (folder / "generation_config.json", folder / "config.json"):
        if not file.is_file():
            continue
        try:
            stop = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError):
            raise CheckpointError(f"{file}: expected a JSON object") from None
        if stop is None:
            continue
        ids = stop if isinstance(stop, list) else [stop]
        if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
            raise CheckpointError(f"{file}: eos_token_id: expected token ids, got {stop!r}")
        return tuple(ids)
    return ()
