"""The tensors of a model folder: safetensors files, mapped, checked before any is read."""

from __future__ import annotations

import ctypes
import json
import math
import mmap
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rdkernels.errors import CheckpointError
from rdkernels.models.config import ModelConfig
from rdkernels.models.families import family_named
from rdkernels.models.weights import block_shapes

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
INDEX = "model.safetensors.index.json"
_PAGEOUT = 21  # madvise of Linux 5.4: reclaim these pages; what is needed again is read again


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this config holds."""
    c, family = config, family_named(config.family)
    names = family.tensor_names(c)
    shapes: dict[str, tuple[int, ...]] = {names.embedding: (c.vocab_size, c.hidden_size)}
    for part in names.parts:
        for i in range(getattr(c, f"{part}_layers")):
            for field, shape in block_shapes(c).items():
                shapes[names.of_block(part, i, field)] = family.stored_shape(c, field, shape)
    shapes[names.adapter] = (c.hidden_size, 2 * c.hidden_size)
    shapes[names.final_norm] = (c.hidden_size,)
    shapes[names.head] = (c.vocab_size, c.hidden_size)
    return shapes


class TensorFiles:
    """The tensors of a folder's safetensors files, checked by name and shape before any is read."""

    def __init__(self, folder: Path, config: ModelConfig, stack: ExitStack) -> None:
        self.folder = folder
        self.names = family_named(config.family).tensor_names(config)
        self.handles: dict[str, Any] = {}
        for file in _files(folder):
            try:
                handle = stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{file}: not a safetensors file: {error}") from None
            for name in handle.keys():  # noqa: SIM118 (safe_open is not a mapping)
                if name in self.handles:
                    raise CheckpointError(f"{file}: tensor {name} is in two files")
                self.handles[name] = handle
        self._check(config)

    def _check(self, config: ModelConfig) -> None:
        expected = expected_shapes(config)
        present = self.handles.keys() - self.names.ignored
        missing = expected.keys() - present
        if config.tie_embeddings:
            tied = {self.names.head, self.names.embedding}
            missing -= tied if tied & present else set()
        if missing:
            raise CheckpointError(f"{self.folder}: missing tensor(s): {_some(missing)}")
        if extra := present - expected.keys():
            raise CheckpointError(f"{self.folder}: unexpected tensor(s): {_some(extra)}")
        for name in present:
            shape = tuple(self.handles[name].get_slice(name).get_shape())
            if shape != expected[name]:
                raise CheckpointError(
                    f"{self.folder}: tensor {name}: expected shape {list(expected[name])}, "
                    f"got {list(shape)}"
                )

    def __contains__(self, name: str) -> bool:
        return name in self.handles

    def read(self, name: str, device: torch.device, dtype: torch.dtype | None) -> torch.Tensor:
        tensor = self.handles[name].get_tensor(name)
        where = f"{self.folder}: tensor {name}"
        if tensor.dtype not in DTYPES.values():
            expected = ", ".join(DTYPES)
            raise CheckpointError(f"{where}: expected one of {expected}, got {tensor.dtype}")
        # One pass without a temporary: NaN comes through as both bounds.
        low, high = (float(bound) for bound in tensor.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            kind = "NaN" if math.isnan(low) else "infinite"
            raise CheckpointError(f"{where}: holds {kind} values")
        dtype = dtype or tensor.dtype
        if (largest := max(-low, high)) > torch.finfo(dtype).max:
            raise CheckpointError(f"{where}: {dtype} cannot hold its largest value {largest:g}")
        return tensor.to(device=device, dtype=dtype)


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            files = [folder / shard for shard in shards]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index}: not a safetensors index: {error!r}") from None
    else:
        files = [folder / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file")
    return files


def _some(names: set[str], most: int = 5) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def page_out(tensor: torch.Tensor) -> None:
    """Let the system drop the whole pages under a tensor on the CPU; its values stay as they are.

    A mapped file counts as resident memory as far as it has been read. Where the system knows no
    such advice nothing happens.
    """
    page, begin = mmap.PAGESIZE, tensor.data_ptr()
    first = -(-begin // page) * page
    last = (begin + tensor.numel() * tensor.element_size()) // page * page
    if last > first and (madvise := _madvise()) is not None:
        madvise(first, last - first, _PAGEOUT)


@cache
def _madvise() -> Callable[..., int] | None:
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
