"""Iterations of the core block on the CPU, as the model runs them: in one call, and eager.

The width of the demo model (two blocks, and what is not arithmetic counts) and one block with the
proportions of Huginn-0125 at 2048 of its 5280 channels (what counts is reading the weights).
``--full`` has all 5280.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from bench.micro.timed import run
from bench.random_models import HUGINN, core_iterations, random_model
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.ops import reasons

CONTEXT = 128
_ONE = {"prelude_layers": 1, "coda_layers": 1, "vocab_size": 128}
SIZES = {  # config, iterations
    "demo": (replace(HUGINN, hidden_size=128, num_heads=4, num_kv_heads=4, head_dim=32,
                     intermediate_size=352, core_layers=2, **_ONE), 32),
    "huginn-2048": (replace(HUGINN, hidden_size=2048, num_heads=32, num_kv_heads=32, head_dim=64,
                            intermediate_size=6912, core_layers=1, **_ONE), 1),
    "huginn": (replace(HUGINN, core_layers=1, **_ONE), 1),
}  # fmt: skip
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    full = metafunc.config.getoption("--full")
    metafunc.parametrize("rows", (1, 4, 16, 64) if full else (1, 8))
    metafunc.parametrize("size", list(SIZES) if full else ["demo", "huginn-2048"])


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Weights in another dtype."""
    if value is None or isinstance(value, torch.Tensor):
        return value if value is None else value.to(dtype)
    if isinstance(value, tuple):
        return tuple(cast(part, dtype) for part in value)
    return replace(value, **{f.name: cast(getattr(value, f.name), dtype) for f in fields(value)})


def states(model: RecurrentDepthModel, rows: int, iterations: int) -> torch.Tensor:
    """What the iterations leave; the same inputs for every model of these sizes."""
    torch.manual_seed(rows)
    return core_iterations(model, 1, CONTEXT, rows, iterations)()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("provider", ["eager", "native"])
def bench_core_iterations(benchmark, rows, size, dtype, provider):
    if reason := reasons("core_iterations", "cpu", DTYPES[dtype])[provider]:
        pytest.skip(reason)
    config, iterations = SIZES[size]
    weights = random_model(config, dtype=DTYPES[dtype]).weights
    model = RecurrentDepthModel(config, weights, backend=provider)
    eager = RecurrentDepthModel(config, weights, backend="eager")
    exact = RecurrentDepthModel(config, cast(weights, torch.float64), backend="eager")
    with torch.no_grad():
        # Two iterations, over all elements: of 32 on random weights nothing but luck would be
        # compared, and the largest error is luck too.
        found, same, want = (states(m, rows, 2).double() for m in (model, eager, exact))
        error, usual = ((x - want).square().mean().sqrt() for x in (found, same))
        assert error <= 2 * usual + 1e-5, f"error {error:.3e}, eager's {usual:.3e}: not timed"
        run(
            benchmark,
            core_iterations(model, 1, CONTEXT, rows, iterations),
            (),
            group=f"core_iterations {size} {rows} rows x {iterations} {dtype}",
            provider=provider,
            traffic=iterations * model.parameter_bytes("core"),
        )
