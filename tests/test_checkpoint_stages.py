"""``python -m bench.checkpoint_stages``: its stages on a tiny model, and what they are held to."""

from __future__ import annotations

import time

import pytest
import torch

from bench import checkpoint_stages, memory
from bench.random_models import TINY, weights_bytes
from tests.support.commands import report_of


@pytest.mark.parametrize("weights", [None, "int8"])
def test_stages_of_the_dry_run(weights):
    chosen = [] if weights is None else ["--weights", weights]
    report = report_of("bench.checkpoint_stages", "--dry-run", *chosen)
    assert [stage["stage"] for stage in report["stages"]] == ["create", "save", "load", "decode"]
    for stage in report["stages"]:
        loaded = stage["stage"] in ("load", "decode")
        size = weights_bytes(TINY, weights if loaded else None)
        assert stage["weights_bytes"] == size and stage["seconds"] > 0.0
        assert (stage["kv_bytes"] > 0) == (stage["stage"] == "decode")
        assert stage["limited"] == ("anonymous" if loaded and weights else "resident")
        assert stage["within"] is not False
        peak, anonymous = stage["peak_rss_bytes"], stage["anonymous_bytes"]
        assert peak is None or anonymous is None or peak >= anonymous > 0


def test_stages_measure_their_own_peak():
    """A stage that allocates and frees shows in its own peak, not in the next one's."""
    if not memory.reset_peak():
        pytest.skip("the peak of the resident set cannot be reset here")
    stages = checkpoint_stages.Stages()
    stages.run("much", lambda: (torch.ones(512 << 20, dtype=torch.uint8), time.sleep(0.1)), 0)
    stages.run("little", lambda: None, 0, kv_bytes=1 << 20, limited="anonymous")
    much, little = stages.records
    for peak in ("peak_rss_bytes", "peak_anonymous_bytes"):
        assert getattr(much, peak) - getattr(little, peak) > 400 << 20
    assert not much.within and little.within
    assert little.limit_bytes == int(1.1 * (1 << 20)) + stages.constant
