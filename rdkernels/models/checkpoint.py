"""Loading and saving checkpoints: a folder with config.json and safetensors (sharded or not).

What the keys and tensors are called is for :mod:`rdkernels.models.families` to say. Loading is
strict: every tensor must be there with the right shape, and nothing else may be.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rdkernels import dtypes
from rdkernels.errors import ArgumentError, CheckpointError
from rdkernels.models.config import ModelConfig
from rdkernels.models.demo import DEMO_MODELS
from rdkernels.models.families import (
    TensorNames,
    config_from_file,
    config_to_dict,
    family_named,
    family_of,
)
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.models.tensor_files import INDEX, TensorFiles, page_out
from rdkernels.models.tokenizer import Tokenizer
from rdkernels.models.weights import (
    Block,
    LinearWeight,
    QuantizedWeight,
    Weights,
    block_shapes,
    values_and_scale,
)
from rdkernels.ops import BLOCK_MATRICES
from rdkernels.registry import BACKENDS


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
    config = config_from_file(folder / "config.json")
    wanted = dtypes.BY_NAME.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and wanted not in dtypes.BY_NAME.values():
        known = ", ".join(dtypes.BY_NAME)
        raise ArgumentError("load_model", "dtype", f"one of {known}", repr(dtype))
    if backend is not None and backend not in BACKENDS:
        expected = f"one of {', '.join(BACKENDS)}"
        raise ArgumentError("load_model", "backend", expected, repr(backend))
    device = _usable_device(device)
    _check_weights(weights, device)
    with ExitStack() as stack:
        source = TensorFiles(folder, config, stack)
        loaded = _read_weights(source, config, device, wanted, quantize=weights is not None)
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


def _read_weights(
    source: TensorFiles,
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype | None,
    quantize: bool,
) -> Weights:
    names: TensorNames = source.names
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

    shapes = block_shapes(config)

    def block(part: str, number: int) -> Block:
        values: dict[str, Any] = {}
        for field, shape in shapes.items():
            name = names.of_block(part, number, field)
            linear = field in BLOCK_MATRICES
            values[field] = read_linear(name) if linear else read(name).reshape(shape)
        return Block(**values)

    def blocks(part: str) -> tuple[Block, ...]:
        return tuple(block(part, i) for i in range(getattr(config, f"{part}_layers")))

    embedding = read(names.embedding if names.embedding in source else names.head)
    head: LinearWeight
    if config.tie_embeddings:
        head = QuantizedWeight.from_weight(embedding) if quantize else embedding
        if names.embedding in source and names.head in source:  # the fp32 release stores it twice
            second = read(names.head)
            if not torch.equal(second, embedding):
                raise CheckpointError(
                    f"{source.folder}: tie_embeddings is true, but {names.head} and "
                    f"{names.embedding} differ"
                )
    else:
        head = read_linear(names.head)
    weights = Weights(
        embedding=embedding,
        prelude=blocks("prelude"),
        adapter=read_linear(names.adapter),
        core=blocks("core"),
        coda=blocks("coda"),
        final_norm=read(names.final_norm),
        head=head,
    )
    if len(dtypes) > 1:
        found = ", ".join(sorted(map(str, dtypes)))
        raise CheckpointError(f"{source.folder}: mixed dtypes ({found}); pass dtype=")
    return weights


def named_tensors(model: RecurrentDepthModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Checkpoint name and tensor of every weight, not int8; a tied head is not repeated."""
    w, config = model.weights, model.config
    family = family_named(config.family)
    names = family.tensor_names(config)

    def plain(weight: LinearWeight) -> torch.Tensor:
        return values_and_scale(weight)[0]

    yield names.embedding, w.embedding
    for part in names.parts:
        for i, block in enumerate(getattr(w, part)):
            for field, shape in block_shapes(config).items():
                stored = family.stored_shape(config, field, shape)
                tensor = plain(getattr(block, field))
                yield names.of_block(part, i, field), tensor.reshape(stored)
    yield names.adapter, plain(w.adapter)
    yield names.final_norm, w.final_norm
    if not config.tie_embeddings:
        yield names.head, plain(w.head)


def save_model(
    model: RecurrentDepthModel, path: str | Path, *, max_shard_bytes: int = 5 << 30
) -> None:
    """Write ``config.json``, safetensors (sharded above ``max_shard_bytes``) and the tokenizer.

    Raises:
        ArgumentError: the folder holds a model already (nothing is overwritten), or the model was
            loaded as int8.
        CheckpointError: the family of the model's config has no words for its style.
    """
    if model.weights.quantized:
        expected = "a model with weights=None (int8 is made while loading and not stored)"
        raise ArgumentError("save_model", "model", expected, "weights='int8'")
    folder = Path(path)
    index_file = folder / INDEX  # a stale one would win on loading
    files_of_a_model = (folder / "config.json", folder / "model.safetensors", index_file)
    if any(file.exists() for file in files_of_a_model):
        raise ArgumentError("save_model", "path", "a folder without a model", str(folder))
    dtype = str(model.dtype).removeprefix("torch.")
    config_text = json.dumps(config_to_dict(model.config, dtype), indent=2) + "\n"
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
        index_file.write_text(text)
    for shard, file in zip(shards, files, strict=True):
        save_file(shard, folder / file, metadata={"format": "pt"})
    if model.tokenizer is not None:
        model.tokenizer.save(folder / "tokenizer.json")
    (folder / "config.json").write_text(config_text)


def default_stop_tokens(path: str | Path) -> tuple[int, ...]:
    """``eos_token_id`` of ``generation_config.json``, else what ``config.json`` says, else none.

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
            data = json.loads(file.read_text(encoding="utf-8"))
            stop = data.get("eos_token_id")
        except (ValueError, AttributeError):
            raise CheckpointError(f"{file}: expected a JSON object") from None
        if file.name == "config.json":
            stop = family_of(data, str(file)).stop_tokens(data)
        if stop is None:
            continue
        ids = stop if isinstance(stop, list) else [stop]
        if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
            raise CheckpointError(f"{file}: eos_token_id: expected token ids, got {stop!r}")
        return tuple(ids)
    return ()
