"""Loading and saving checkpoints: a folder with config.json and safetensors (sharded or not).

Layout of the released Huginn-0125 (``transformer.wte.weight`` and so on). Loading is strict: every
tensor must be there with the right shape, and nothing else may be.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rdkernels import dtypes
from rdkernels.errors import ArgumentError, CheckpointError
from rdkernels.models.blocks import Block
from rdkernels.models.config import ModelConfig
from rdkernels.models.demo import DEMO_MODELS
from rdkernels.models.mapped import page_out
from rdkernels.models.quantized import LinearWeight, QuantizedWeight
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.models.tokenizer import Tokenizer
from rdkernels.models.weights import Weights
from rdkernels.registry import BACKENDS

_EMBEDDING, _HEAD = "transformer.wte.weight", "lm_head.weight"
_PARTS = {"prelude": "prelude", "core": "core_block", "coda": "coda"}
_BLOCK_NAMES = {
    "norm_1": "norm_1.weight",
    "norm_2": "norm_2.weight",
    "norm_3": "norm_3.weight",
    "norm_4": "norm_4.weight",
    "wqkv": "attn.Wqkv.weight",
    "qk_bias": "attn.qk_bias",
    "attn_proj": "attn.proj.weight",
    "mlp_fc": "mlp.fc.weight",
    "mlp_proj": "mlp.proj.weight",
}
_LINEAR = {"wqkv", "attn_proj", "mlp_fc", "mlp_proj"}
_RECOMPUTED = {"freqs_cis"}


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this config holds."""
    c = config
    block = {
        "norm_1": (c.hidden_size,),
        "norm_2": (c.hidden_size,),
        "norm_3": (c.hidden_size,),
        "norm_4": (c.hidden_size,),
        "wqkv": ((c.num_heads + 2 * c.num_kv_heads) * c.head_dim, c.hidden_size),
        "qk_bias": (2, 1, c.num_heads, c.head_dim),
        "attn_proj": (c.hidden_size, c.num_heads * c.head_dim),
        "mlp_fc": (2 * c.intermediate_size, c.hidden_size),
        "mlp_proj": (c.hidden_size, c.intermediate_size),
    }
    shapes: dict[str, tuple[int, ...]] = {_EMBEDDING: (c.vocab_size, c.hidden_size)}
    for part, prefix in _PARTS.items():
        for i in range(getattr(c, f"{part}_layers")):
            for field, shape in block.items():
                if field != "qk_bias" or c.qk_bias:
                    shapes[f"transformer.{prefix}.{i}.{_BLOCK_NAMES[field]}"] = shape
    shapes["transformer.adapter.weight"] = (c.hidden_size, 2 * c.hidden_size)
    shapes["transformer.ln_f.weight"] = (c.hidden_size,)
    shapes[_HEAD] = (c.vocab_size, c.hidden_size)
    return shapes


def load_model(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    *,
    weights: str | None = None,
    backend: str | None = None,
) -> RecurrentDepthModel:
    """Load a model folder, or a shipped demo model by name (``"demo"``, ``"demo-automaton"``, ...).

    Files are memory-mapped and tensors converted one by one, so a second copy of the model never
    exists; where neither dtype nor device changes, the weights stay mapped.

    With ``weights="int8"`` the linear layers become int8 with a scale for each output, halving what
    a pass over bf16 weights reads; activations, norms, biases and the embedding stay as they are.
    A head tied to the embedding becomes an int8 copy of it. On the CPU only.

    Args:
        path: folder with ``config.json``, ``*.safetensors`` (with an index where sharded) and
            optionally ``tokenizer.json``; or a demo name.
        device: where the weights go.
        dtype: of the weights; default what the checkpoint holds.
        weights: ``"int8"``, or None: linear layers as the others.
        backend: force a provider for every op of this model.

    Raises:
        CheckpointError: names the file, key or tensor that is missing, extra, misshapen or NaN.
        ArgumentError: unknown dtype, weights or backend, no such device, or int8 not on the CPU.
    """
    folder = DEMO_MODELS[path] if isinstance(path, str) and path in DEMO_MODELS else Path(path)
    if not folder.is_dir():
        names = ", ".join(DEMO_MODELS)
        raise CheckpointError(f"{path}: no such model folder (and not a demo model: {names})")
    config = ModelConfig.from_file(folder / "config.json")
    if isinstance(dtype, str):
        dtype = dtypes.BY_NAME.get(dtype, dtype)
    if dtype is not None and dtype not in dtypes.BY_NAME.values():
        raise ArgumentError(
            "load_model", "dtype", f"one of {', '.join(dtypes.BY_NAME)}", repr(dtype)
        )
    if backend is not None and backend not in BACKENDS:
        expected = f"one of {', '.join(BACKENDS)}"
        raise ArgumentError("load_model", "backend", expected, repr(backend))
    device = _usable_device(device)
    _check_weights(weights, device)
    with ExitStack() as stack:
        source = _Source(folder, config, stack)
        loaded = _read_weights(source, config, device, dtype, quantize=weights is not None)
    tokenizer_file = folder / "tokenizer.json"
    tokenizer = Tokenizer(tokenizer_file) if tokenizer_file.is_file() else None
    if tokenizer is not None and tokenizer.vocabulary > config.vocab_size:
        raise CheckpointError(
            f"{tokenizer_file}: {tokenizer.vocabulary} tokens, but the model's vocabulary has only "
            f"{config.vocab_size}"
        )
    return RecurrentDepthModel(config, loaded, tokenizer, backend)


def _check_weights(weights: str | None, device: torch.device) -> None:
    if weights not in (None, "int8"):
        raise ArgumentError("load_model", "weights", "None or 'int8'", repr(weights))
    if weights is not None and device.type != "cpu":
        raise ArgumentError("load_model", "weights", f"None on {device} (int8: CPU only)", weights)


def _usable_device(device: torch.device | str) -> torch.device:
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ArgumentError("load_model", "device", "cpu, cuda or cuda:N", repr(device)) from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        count = f"{torch.cuda.device_count()} CUDA device(s) are usable"
        raise ArgumentError("load_model", "device", f"a device that is there ({count})", found)
    return found


class _Source:
    """The tensors of a folder's safetensors files, checked by name and shape before any is read."""

    def __init__(self, folder: Path, config: ModelConfig, stack: ExitStack) -> None:
        self.folder = folder
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
        present = self.handles.keys() - _RECOMPUTED
        missing = expected.keys() - present
        if config.tie_embeddings:
            missing -= {_HEAD, _EMBEDDING} if {_HEAD, _EMBEDDING} & present else set()
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
        if tensor.dtype not in dtypes.BY_NAME.values():
            expected = ", ".join(dtypes.BY_NAME)
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
    index = folder / "model.safetensors.index.json"
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


def _read_weights(
    source: _Source,
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype | None,
    quantize: bool,
) -> Weights:
    dtypes: set[torch.dtype] = set()

    def read_mapped(name: str) -> torch.Tensor:
        tensor = source.read(name, device, dtype)
        dtypes.add(tensor.dtype)
        return tensor

    def read(name: str) -> torch.Tensor:
        # One tensor that stayed mapped would keep the whole file in memory beside the int8 copy.
        return read_mapped(name).clone() if quantize else read_mapped(name)

    def read_linear(name: str) -> LinearWeight:
        tensor = read_mapped(name)
        if not quantize:
            return tensor
        quantized = QuantizedWeight.from_weight(tensor)
        page_out(tensor)
        return quantized

    def blocks(part: str) -> tuple[Block, ...]:
        prefix, count = _PARTS[part], getattr(config, f"{part}_layers")
        readers = {name: read_linear if name in _LINEAR else read for name in _BLOCK_NAMES}
        return tuple(
            _read_block(readers, f"transformer.{prefix}.{i}.", config) for i in range(count)
        )

    embedding = read(_EMBEDDING if _EMBEDDING in source else _HEAD)
    if config.tie_embeddings:
        head = QuantizedWeight.from_weight(embedding) if quantize else embedding
        if _EMBEDDING in source and _HEAD in source:  # the fp32 release stores it twice
            second = read(_HEAD)
            if not torch.equal(second, embedding):
                raise CheckpointError(
                    f"{source.folder}: tie_embeddings is true, but {_HEAD} and {_EMBEDDING} differ"
                )
    else:
        head = read_linear(_HEAD)
    weights = Weights(
        embedding=embedding,
        prelude=blocks("prelude"),
        adapter=read_linear("transformer.adapter.weight"),
        core=blocks("core"),
        coda=blocks("coda"),
        final_norm=read("transformer.ln_f.weight"),
        head=head,
    )
    if len(dtypes) > 1:
        found = ", ".join(sorted(map(str, dtypes)))
        raise CheckpointError(f"{source.folder}: mixed dtypes ({found}); pass dtype=")
    return weights


def _read_block(readers: dict[str, Any], prefix: str, config: ModelConfig) -> Block:
    values = {}
    for field, name in _BLOCK_NAMES.items():
        if field == "qk_bias":
            values[field] = None
            if config.qk_bias:  # [2, 1, H, d] -> [2H, d]
                values[field] = readers[field](prefix + name).reshape(-1, config.head_dim)
        else:
            values[field] = readers[field](prefix + name)
    return Block(**values)


def named_tensors(model: RecurrentDepthModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Checkpoint name and tensor of every weight; a tied head is not repeated."""
    w, c = model.weights, model.config
    yield _EMBEDDING, w.embedding
    for part, prefix in _PARTS.items():
        for i, block in enumerate(getattr(w, part)):
            for field, name in _BLOCK_NAMES.items():
                tensor = getattr(block, field)
                if tensor is not None:
                    shaped = (
                        tensor.view(2, 1, c.num_heads, c.head_dim) if field == "qk_bias" else tensor
                    )
                    yield f"transformer.{prefix}.{i}.{name}", shaped
    yield "transformer.adapter.weight", w.adapter
    yield "transformer.ln_f.weight", w.final_norm
    if not c.tie_embeddings:
        yield _HEAD, w.head


def save_model(
    model: RecurrentDepthModel, path: str | Path, *, max_shard_bytes: int = 5 << 30
) -> None:
    """Write ``config.json``, safetensors (sharded above ``max_shard_bytes``) and the tokenizer.

    Raises:
        ArgumentError: the folder holds a model already (nothing is overwritten), or the model was
            loaded as int8.
    """
    if model.weights.quantized:
        expected = "a model with weights=None (int8 is made while loading and not stored)"
        raise ArgumentError("save_model", "model", expected, "weights='int8'")
    folder = Path(path)
    index = "model.safetensors.index.json"  # a stale one would win on loading
    if any((folder / name).exists() for name in ("config.json", "model.safetensors", index)):
        raise ArgumentError("save_model", "path", "a folder without a model", str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in named_tensors(model):
        nbytes = tensor.numel() * tensor.element_size()
        if shards[-1] and size + nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.contiguous()
        size += nbytes
    files = ["model.safetensors"]
    if len(shards) > 1:
        count = len(shards)
        files = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        index = {n: f for shard, f in zip(shards, files, strict=True) for n in shard}
        text = json.dumps({"metadata": {}, "weight_map": index}, indent=2)
        (folder / "model.safetensors.index.json").write_text(text)
    for shard, file in zip(shards, files, strict=True):
        save_file(shard, folder / file, metadata={"format": "pt"})
    if model.tokenizer is not None:
        model.tokenizer.save(folder / "tokenizer.json")
    dtype = str(model.dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(dtype), indent=2) + "\n")
