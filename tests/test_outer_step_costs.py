"""What an outer step costs besides its arithmetic: host reads, memory and launches, counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import rdkernels as rdk
from bench.random_models import TINY
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.ops import reasons
from rdkernels.runtime.loop import Prompt, WavefrontLoop
from tests.support.tiny import random_prompts, tiny_model

needs_native = pytest.mark.skipif(
    reasons("core_iterations", "cpu", torch.float32)["native"] is not None,
    reason="no native CPU kernels",
)
SAMPLERS = {
    "diffusion": rdk.DiffusionForcing(8, inner_recurrence=2, exit_threshold=0.3, max_wavefront=4),
    "autoregressive": rdk.Autoregressive(4),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
HOST_READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
GEMMS = {"mm", "addmm", "bmm", "linear", "mkldnn_linear"}


def steady_loop(model: RecurrentDepthModel, sampler: rdk.Sampler, **options) -> WavefrontLoop:
    """A loop of two sequences with rows that come and go for long."""
    loop = WavefrontLoop(
        model,
        sampler.wavefront_policy(),
        rdk.Sampling(),
        max_sequences=2,
        max_tokens=120,
        **options,
    )
    prompts = random_prompts(1, [5, 7])
    loop.admit({b: Prompt(prompt, 120, b) for b, prompt in enumerate(prompts)})
    for _ in range(12):
        loop.step()
    assert loop.running
    return loop


class Calls(TorchDispatchMode):
    """Every torch op that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: list = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


def host_reads(loop: WavefrontLoop, monkeypatch) -> int:
    """How often an outer step takes values out of tensors."""
    lists = []
    with monkeypatch.context() as patch, Calls() as calls:
        for name in ("tolist", "numpy"):
            real = getattr(torch.Tensor, name)
            patch.setattr(
                torch.Tensor, name, lambda self, real=real: (lists.append(self), real(self))[1]
            )
        loop.step()
    return len(lists) + sum(func in HOST_READS for func in calls.functions)


def allocations(loop: WavefrontLoop) -> list[tuple[str, int]]:
    """Tensor memory that an outer step takes: op (of torch), bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        loop.step()
    taken = ((event.name, event.self_cpu_memory_usage) for event in profiled.events())
    return [(name, size) for name, size in taken if size > 0]


@torch.no_grad()
@every_sampler
@pytest.mark.parametrize("buckets", [None, (8, 32)], ids=["compact", "padded"])
def test_an_outer_step_reads_once(sampler, buckets, monkeypatch):
    loop = steady_loop(tiny_model(0), sampler, buckets=buckets)
    assert [host_reads(loop, monkeypatch) for _ in range(5)] == [1] * 5


@torch.no_grad()
def test_reads_are_seen(monkeypatch):
    """The shortcut of adaptive depth on a CPU looks whether any row has settled."""
    loop = steady_loop(tiny_model(0), rdk.AdaptiveDepth(8, threshold=0.1))
    assert {host_reads(loop, monkeypatch) for _ in range(5)} == {2}


@needs_native
@torch.no_grad()
@every_sampler
@pytest.mark.parametrize("buckets", [None, (8, 32)], ids=["compact", "padded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_an_outer_step_allocates_nothing(sampler, buckets, dtype):
    """But for the scale of the embedding in half types, which torch rounds into a new number."""
    loop = steady_loop(tiny_model(0, dtype=dtype), sampler, buckets=buckets)
    for _ in range(5):
        sizes = [size for _, size in allocations(loop)]
        assert sizes == ([] if dtype == torch.float32 else [2])


@torch.no_grad()
def test_allocations_are_seen():
    eager = tiny_model(0)
    loop = steady_loop(
        RecurrentDepthModel(eager.config, eager.weights, backend="eager"), SAMPLERS["diffusion"]
    )
    assert sum(size for _, size in allocations(loop)) > 10_000


# ---- launches, op by op as on a GPU ----


def launches(core_layers: int, inner_recurrence: int) -> Counter[str]:
    """GEMMs, ops of ours and other kernels of torch in an outer step of diffusion forcing."""
    config = replace(TINY, core_layers=core_layers)
    model = tiny_model(0, config, torch.bfloat16)
    model._one_call = frozenset()  # no op takes whole blocks, as on a GPU
    sampler = rdk.DiffusionForcing(8, inner_recurrence=inner_recurrence)
    loop = steady_loop(model, sampler, buckets=(32, 64))
    with Calls() as calls:
        loop.step()
    return Counter(kind for kind in map(kind_of_launch, calls.functions) if kind)


def kind_of_launch(func: torch._ops.OpOverload) -> str | None:
    """``gemm``, ``ours`` or ``torch``; None where nothing is computed: views and empty tensors."""
    if func.namespace == "rdkernels":
        return "ours"
    schema = func._schema
    name = schema.name.removeprefix("aten::")
    is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    if is_view or name.startswith("empty") or name == "_local_scalar_dense":
        return None
    return "gemm" if name in GEMMS else "torch"


@needs_native
@torch.no_grad()
def test_launches_of_an_outer_step():
    """Huginn's 2 + 4 + 2 layers at r' = 4; docs/kernels.md quotes the sum."""
    found = launches(core_layers=4, inner_recurrence=4)
    assert found == {
        "gemm": 2 * 4 + 4 * (1 + 4 * 4) + 2 * 4 + 1,
        # Norms before the first layers of each part and before the coda; then carry_rows,
        # inject_state, exit_update, sample_tokens, advance_wavefront.
        "ours": (1 + 2 * 4) + 4 * (1 + 4 * 4) + (2 + 2 * 4) + 5,
        # Held states stay: 2 per iteration and 2 before. The embedding: 2. Results into place:
        # prelude, coda, logits, bounds, report. Depths and their limit: 4.
        "torch": 2 * 4 + 2 + 2 + 5 + 4,
    }
    assert found.total() == 198


@needs_native
@torch.no_grad()
def test_launches_of_a_core_layer_and_of_an_iteration():
    """A layer is 4 GEMMs and 4 ops: attention, swiglu and two norms."""
    four, three = launches(4, 4), launches(3, 4)
    four.subtract(three)
    assert four == {"gemm": 4 * 4, "ours": 4 * 4, "torch": 0}
    more, fewer = launches(4, 5), launches(4, 4)
    more.subtract(fewer)
    assert more == {"gemm": 1 + 16, "ours": 1 + 16, "torch": 2}
