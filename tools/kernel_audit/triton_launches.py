"""What the Triton provider launches, compiled for any architecture on a machine without a GPU.

The provider's own functions run on tensors of the CPU; where they launch a kernel, it is compiled
as that launch would have it compiled (argument types, alignment, constants, warps) and not run. So
nothing is repeated here of what the provider knows: this file has sizes only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

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


def call(op: str, *args: object) -> object:
    return getattr(importlib.import_module(f"{provider.__name__}.{op}"), op)(*args)


def _int32(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def _attend(dtype: torch.dtype, head_dim: int, rows: int, max_pages: int) -> None:
    """Huginn's heads, or, of another size, a quarter as many KV heads as heads."""
    heads, kv_heads = (HEADS, HEADS) if head_dim == HEAD_DIM else (16, 4)
    cache = torch.empty(2, PAGE_SIZE, kv_heads, head_dim, dtype=dtype)
    call(
        "recurrent_attention",
        torch.empty(rows, (heads + 2 * kv_heads) * head_dim, dtype=dtype),
        torch.empty(heads + kv_heads, head_dim, dtype=dtype),
        torch.empty(PAGE_SIZE * max_pages, head_dim),
        *(cache, torch.empty_like(cache), _int32(1, max_pages), _int32(2), _int32(1)),
        torch.ones(rows, dtype=torch.bool),
        *(head_dim**-0.5, True),
    )


def _advance(restart: bool) -> None:
    tokens, depths, flag = torch.zeros(1, 4096).long(), _int32(1, 4096), torch.zeros(1).bool()
    rows = (torch.zeros(ROWS).long(), torch.zeros(ROWS).bool(), _int32(ROWS), _int32(2))
    limits = (_int32(1), _int32(1), _int32(1), torch.zeros(1).long(), 1, 128, restart)
    call("advance_wavefront", tokens, _int32(1), flag, depths, *rows, *limits)


def huginn_launches() -> dict[str, Callable[[], object]]:
    """Calls at Huginn's sizes in bf16 (logits in fp32), by the variant that they launch."""
    x, weight = torch.empty(ROWS, WIDTH, dtype=BF16), torch.empty(WIDTH, dtype=BF16)
    keys, depth, active = _int32(ROWS, 3), _int32(ROWS), torch.ones(ROWS, dtype=torch.bool)
    logits = torch.empty(ROWS, VOCABULARY)
    noise = (torch.empty(ROWS), keys, 7, 1.0, True)
    return {
        "bf16": lambda: (
            call("rms_norm", x, weight, 1e-6),
            call("swiglu", torch.empty(ROWS, 2 * MLP_WIDTH, dtype=BF16)),
            call("truncated_normal", keys, WIDTH, 1.0, 7, 0, BF16),
            call("inject_state", x, x, x, depth, 0.1, *noise),
            call("carry_rows", x, x, depth, keys, _int32(2), 7, 1.0, False),
        ),
        "bf16, huginn": lambda: call("residual_norm", x, x, weight, weight, 1e-6, "huginn"),
        "bf16, llama": lambda: call("residual_norm", x, x, None, weight, 1e-6, "llama"),
        "bf16, olmo": lambda: call("residual_norm", x, x, weight, weight, 1e-6, "olmo"),
        "bf16, latent-diff": lambda: call(
            "exit_update", x, x, depth, active, 4, 0.03, "latent-diff"
        ),
        "bf16, cosine": lambda: call("exit_update", x, x, depth, active, 4, 0.03, "cosine"),
        "int32": lambda: _advance(restart=False),
        "int32, restart": lambda: _advance(restart=True),
        "fp32": lambda: call("sample_tokens", logits, None, 0.0, 0, 1.0, 0.0, 7),
        "fp32, top-k top-p min-p": lambda: call(
            "sample_tokens", logits, keys, 0.7, 50, 0.9, 0.05, 7
        ),
        "bf16, 96, narrow": lambda: _attend(BF16, 96, 8, 8),
        "bf16, 96, narrow, split": lambda: _attend(BF16, 96, 8, 256),
        "bf16, 96, wide": lambda: _attend(BF16, 96, 64, 8),
    }


def other_launches() -> dict[str, Callable[[], object]]:
    """The other dtypes and head dims."""
    launches: dict[str, Callable[[], object]] = {}
    for dtype in (FP32, FP16):
        x, weight = torch.empty(ROWS, WIDTH, dtype=dtype), torch.empty(WIDTH, dtype=dtype)
        launches[f"{DTYPE_NAMES[dtype]}, huginn"] = lambda x=x, w=weight: (
            call("rms_norm", x, w, 1e-6),
            call("residual_norm", x, x, w, w, 1e-6, "huginn"),
            call("swiglu", torch.empty(ROWS, 2 * MLP_WIDTH, dtype=x.dtype)),
        )
    for dtype in (BF16, FP16):
        logits = torch.empty(ROWS, VOCABULARY, dtype=dtype)
        launches[f"{DTYPE_NAMES[dtype]}, top-k top-p min-p"] = lambda logits=logits: call(
            "sample_tokens", logits, _int32(ROWS, 3), 0.7, 50, 0.9, 0.05, 7
        )
    for head_dim in (32, 64, 128, 256):
        for shape, rows in (("narrow", 2), ("wide", 64)):
            launches[f"bf16, {head_dim}, {shape}"] = lambda d=head_dim, n=rows: _attend(
                BF16, d, n, 8
            )
    launches["fp16, 96, wide"] = lambda: _attend(FP16, 96, 64, 8)
    launches["fp32, 96"] = lambda: _attend(FP32, 96, 8, 8)
    launches["fp32, 256"] = lambda: _attend(FP32, 256, 8, 8)
    return launches
