"""What the Triton provider launches, compiled for any architecture on a machine without a GPU.

The provider's own functions run on tensors of the CPU; where they launch a kernel, it is compiled
as that launch would have it compiled (argument types, alignment, constants, warps) and not run. So
nothing is repeated here of what the provider knows: this file has sizes only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from cases import Shape, labelled
from rdkernels.backends import triton as provider

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DTYPE_NAMES = {BF16: "bf16", FP16: "fp16", FP32: "fp32"}

# Huginn-0125.
WIDTH, MLP_WIDTH, VOCABULARY, HEADS, HEAD_DIM = 5280, 17920, 65536, 55, 96
ROWS = 8
PAGE_SIZE = 16

Launch = tuple[str, object]  # kernel name, triton's CompiledKernel


class _NoDevice:
    """Triton's driver of a GPU that is not there; its number is the architecture's."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def compile_only(capability: int) -> Iterator[list[Launch]]:
    """In this block launches are compiled for ``capability`` (90) and listed, and nothing runs."""
    launches: list[Launch] = []
    run = JITFunction.run

    def compile_launch(self: JITFunction, *args: object, **options: object) -> object:
        compiled = run(self, *args, **(options | {"warmup": True}))
        launches.append((self.fn.__name__, compiled))
        return compiled

    driver.set_active(_NoDevice(capability))  # for good: this process launches nothing
    with mock.patch.object(JITFunction, "run", compile_launch):
        yield launches


def _shape(dtype: torch.dtype, rows: int = ROWS, table_width: int = 256) -> Shape:
    """One sequence of Huginn's sizes with ``table_width`` columns in its page table."""
    context = (table_width - 2) * PAGE_SIZE - rows  # the cases' tables have two spare columns
    return Shape(
        lengths=(rows,),
        starts=(context,),
        inactive=0.3,
        dtype=dtype,
        width=WIDTH,
        mlp_width=MLP_WIDTH,
        vocabulary=VOCABULARY,
        heads=HEADS,
        kv_heads=HEADS,
        head_dim=HEAD_DIM,
        page_size=PAGE_SIZE,
    )


def _of_head_dim(head_dim: int, shape: Shape) -> Shape:
    """Of a size that is not Huginn's, with a quarter as many KV heads as heads."""
    return replace(shape, heads=16, kv_heads=4, head_dim=head_dim)


def launch(shape: Shape, *calls: tuple[str, str]) -> None:
    """Call the provider with cases of the table: ops and labels."""
    for op, label in calls:
        function = getattr(importlib.import_module(f"{provider.__name__}.{op}"), op)
        function(*labelled(op, label, shape).arguments)


def _attend(shape: Shape) -> Callable[[], None]:
    return partial(launch, shape, ("recurrent_attention", ""))


def huginn_launches() -> dict[str, Callable[[], object]]:
    """Calls at Huginn's sizes in bf16 (logits in fp32), by the variant that they launch."""
    shape = _shape(BF16)
    calls = {
        "bf16": (
            ("rms_norm", ""),
            ("swiglu", ""),
            ("truncated_normal", ""),
            ("inject_state", "momentum, noise, variance preserving"),
            ("carry_rows", "drawn"),
        ),
        **{f"bf16, {style}": (("residual_norm", style),) for style in ("huginn", "llama", "olmo")},
        **{f"bf16, {rule}": (("exit_update", rule),) for rule in ("latent-diff", "cosine")},
        "int32": (("advance_wavefront", "redraft"),),
        "int32, restart": (("advance_wavefront", "restart"),),
    }
    of_logits = {
        "fp32": ("sample_tokens", "greedy"),
        "fp32, top-k top-p min-p": ("sample_tokens", "top-k, top-p, min-p"),
    }
    return {
        **{variant: partial(launch, shape, *made) for variant, made in calls.items()},
        **{variant: partial(launch, _shape(FP32), made) for variant, made in of_logits.items()},
        "bf16, 96, narrow": _attend(_shape(BF16, 8, 8)),
        "bf16, 96, narrow, split": _attend(_shape(BF16, 8, 256)),
        "bf16, 96, wide": _attend(_shape(BF16, 64, 8)),
    }


def other_launches() -> dict[str, Callable[[], object]]:
    """The other dtypes and head dims."""
    launches: dict[str, Callable[[], object]] = {}
    of_rows = (("rms_norm", ""), ("residual_norm", "huginn"), ("swiglu", ""))
    for dtype in (FP32, FP16):
        launches[f"{DTYPE_NAMES[dtype]}, huginn"] = partial(launch, _shape(dtype), *of_rows)
    filters = ("sample_tokens", "top-k, top-p, min-p")
    for dtype in (BF16, FP16):
        name = f"{DTYPE_NAMES[dtype]}, top-k top-p min-p"
        launches[name] = partial(launch, _shape(dtype), filters)
    for head_dim in (32, 64, 128, 256):
        for kind, rows in (("narrow", 2), ("wide", 64)):
            shape = _of_head_dim(head_dim, _shape(BF16, rows, 8))
            launches[f"bf16, {head_dim}, {kind}"] = _attend(shape)
    launches["fp16, 96, wide"] = _attend(_shape(FP16, 64, 8))
    launches["fp32, 96"] = _attend(_shape(FP32, 8, 8))
    launches["fp32, 256"] = _attend(_of_head_dim(256, _shape(FP32, 8, 8)))
    return launches
