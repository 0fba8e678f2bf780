"""load_model and save_model: strict, memory-mapped, and the same model back."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

import rdkernels as rdk
from rdkernels.errors import ArgumentError, CheckpointError
from rdkernels.models.checkpoint import named_tensors
from rdkernels.models.config import BlockStyle
from rdkernels.models.tensor_files import expected_shapes
from tests.support.tiny import CONFIG, GROUPED, random_tensors, tiny_model, write_checkpoint

EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"
SOME = "transformer.core_block.1.mlp.fc.weight"


def write_tokenizer(folder, words):
    vocabulary = {f"w{i}": i for i in range(words)}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


def same_weights(one, two):
    pairs = zip(named_tensors(one), named_tensors(two), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("config", [CONFIG, GROUPED], ids=["tied", "untied"])
def test_every_tensor_arrives_at_its_place(tmp_path, seed, config):
    model = rdk.load_model(write_checkpoint(tmp_path / "m", config, seed=seed))
    assert same_weights(model, tiny_model(seed, config))
    assert model.config == config
    assert model.tokenizer is None
    assert (model.weights.head is model.weights.embedding) == config.tie_embeddings
    tokens = torch.tensor([[1, 2, 3, 4]])
    expected, _ = tiny_model(seed, config).forward(tokens, 3, seed=seed)
    assert torch.equal(model.forward(tokens, 3, seed=seed)[0], expected)


@pytest.mark.parametrize("config", [CONFIG, GROUPED], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shard_bytes", [5 << 30, 20_000, 1], ids=["one", "some", "each"])
def test_round_trip(tmp_path, seed, config, dtype, shard_bytes):
    model = tiny_model(seed, config, dtype)
    rdk.save_model(model, tmp_path / "deep" / "m", max_shard_bytes=shard_bytes)
    again = rdk.load_model(tmp_path / "deep" / "m")
    assert same_weights(model, again)
    assert again.dtype == dtype
    assert again.config == config
    files = sorted((tmp_path / "deep" / "m").glob("*.safetensors"))
    tensors = dict(named_tensors(model))
    if shard_bytes == 1:
        assert len(files) == len(tensors)
    elif shard_bytes == 20_000:
        assert 1 < len(files) < len(tensors)
        for file in files:
            shard = load_file(file)
            held = sum(t.numel() * t.element_size() for t in shard.values())
            assert held <= shard_bytes or len(shard) == 1
    else:
        assert [file.name for file in files] == ["model.safetensors"]
    assert {n for file in files for n in load_file(file)} == tensors.keys()


def test_a_loaded_model_can_be_saved_again(tmp_path, seed):
    """Mapped weights share one storage, which safetensors must not mistake for aliasing."""
    write_checkpoint(tmp_path / "a", seed=seed)
    write_tokenizer(tmp_path / "a", 60)
    rdk.save_model(rdk.load_model(tmp_path / "a"), tmp_path / "b")
    again = rdk.load_model(tmp_path / "b")
    assert same_weights(again, tiny_model(seed))
    assert again.tokenizer.encode("w5 w59") == [5, 59]
    assert again.tokenizer.decode([7, 8]) == "w7 w8"


def test_nothing_is_saved_over_a_model(tmp_path):
    folder = write_checkpoint(tmp_path / "m", seed=1)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ArgumentError, match="path"):
        rdk.save_model(tiny_model(2), folder)
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32", "float64"])
def test_dtype_by_name_and_by_value(tmp_path, name):
    folder = write_checkpoint(tmp_path / "m")
    for dtype in (name, getattr(torch, name)):
        model = rdk.load_model(folder, dtype=dtype)
        assert {t.dtype for t in model.weights.tensors()} == {getattr(torch, name)}
    expected = {n: t.to(getattr(torch, name)) for n, t in named_tensors(tiny_model(0))}
    assert all(torch.equal(t, expected[n]) for n, t in named_tensors(model))


@pytest.mark.parametrize("dtype", ["fp32", "int8", "", torch.int32, torch.bool, 32, float])
def test_bad_dtypes_are_refused(tmp_path, dtype):
    with pytest.raises(ArgumentError, match="dtype"):
        rdk.load_model(write_checkpoint(tmp_path / "m"), dtype=dtype)


def test_unknown_backend_and_device_are_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "m")
    with pytest.raises(ArgumentError, match=r"backend.*fastest"):
        rdk.load_model(folder, backend="fastest")
    with pytest.raises(ArgumentError, match=r"device.*abacus"):
        rdk.load_model(folder, device="abacus")


def test_tied_head_stored_twice(tmp_path):
    tensors = random_tensors(CONFIG, 0)
    tensors[HEAD] = tensors[EMBEDDING].clone()
    model = rdk.load_model(write_checkpoint(tmp_path / "same", tensors=tensors))
    assert model.weights.head is model.weights.embedding
    assert same_weights(model, tiny_model(0))
    tensors[HEAD][3, 5] += 1
    with pytest.raises(CheckpointError, match=rf"{HEAD} and {EMBEDDING} differ"):
        rdk.load_model(write_checkpoint(tmp_path / "other", tensors=tensors))


def test_tied_head_without_embedding(tmp_path):
    """Releases that store only the head: it is both."""
    tensors = random_tensors(CONFIG, 0)
    tensors[HEAD] = tensors.pop(EMBEDDING)
    assert same_weights(
        rdk.load_model(write_checkpoint(tmp_path / "m", tensors=tensors)), tiny_model(0)
    )


@pytest.mark.parametrize("name", sorted(expected_shapes(GROUPED)))
def test_missing_tensor_is_named(tmp_path, name):
    tensors = random_tensors(GROUPED, 0)
    del tensors[name]
    with pytest.raises(CheckpointError, match=rf"missing tensor\(s\): {name}"):
        rdk.load_model(write_checkpoint(tmp_path / "m", GROUPED, tensors))


def test_neither_embedding_nor_head(tmp_path):
    tensors = random_tensors(CONFIG, 0)
    del tensors[EMBEDDING]
    with pytest.raises(CheckpointError, match=EMBEDDING):
        rdk.load_model(write_checkpoint(tmp_path / "m", tensors=tensors))


def test_many_missing_tensors_are_counted(tmp_path):
    with pytest.raises(CheckpointError, match=r"missing.*and \d+ more"):
        rdk.load_model(write_checkpoint(tmp_path / "m", tensors={EMBEDDING: torch.zeros(64, 32)}))


def test_extra_tensor_is_named(tmp_path):
    tensors = random_tensors(CONFIG, 0) | {"transformer.core_block.2.norm_1.weight": torch.ones(32)}
    with pytest.raises(CheckpointError, match=r"unexpected.*core_block\.2\.norm_1"):
        rdk.load_model(write_checkpoint(tmp_path / "m", tensors=tensors))


def test_a_bias_that_the_config_denies_is_extra(tmp_path):
    config = replace(CONFIG, block=BlockStyle(qk_bias=False))
    with pytest.raises(CheckpointError, match=r"unexpected.*qk_bias"):
        rdk.load_model(write_checkpoint(tmp_path / "m", config, random_tensors(CONFIG, 0)))


def test_recomputed_buffer_is_ignored(tmp_path):
    tensors = random_tensors(CONFIG, 0) | {"freqs_cis": torch.zeros(1, 160, 1, 8, 2)}
    model = rdk.load_model(write_checkpoint(tmp_path / "m", tensors=tensors))
    assert same_weights(model, tiny_model(0))


@pytest.mark.parametrize("name", sorted(random_tensors(CONFIG, 0)))
def test_misshapen_tensor_is_named(tmp_path, name):
    """A transpose too, where it keeps the number of elements."""
    tensors = random_tensors(CONFIG, 0)
    tensors[name] = tensors[name].unsqueeze(0).contiguous()
    with pytest.raises(CheckpointError, match=rf"{name}: expected shape \["):
        rdk.load_model(write_checkpoint(tmp_path / "m", tensors=tensors))


@pytest.mark.parametrize(
    ("value", "named"), [(math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite")]
)
@pytest.mark.parametrize("name", [SOME, EMBEDDING, "transformer.ln_f.weight"])
def test_not_finite_tensor_is_named(tmp_path, name, value, named):
    tensors = random_tensors(CONFIG, 0)
    tensors[name].view(-1)[-1] = value
    with pytest.raises(CheckpointError, match=f"{name}.*{named}"):
        rdk.load_model(write_checkpoint(tmp_path / "m", tensors=tensors))


def test_opposite_infinities_do_not_cancel(tmp_path):
    tensors = random_tensors(CONFIG, 0)
    tensors[SOME][0, :2] = torch.tensor([math.inf, -math.inf])
    with pytest.raises(CheckpointError, match="infinite"):
        rdk.load_model(write_checkpoint(tmp_path / "m", tensors=tensors))


def test_weights_that_the_dtype_cannot_hold(tmp_path):
    tensors = random_tensors(CONFIG, 0)
    tensors[SOME][1, 1] = 1e6
    folder = write_checkpoint(tmp_path / "m", tensors=tensors)
    rdk.load_model(folder, dtype="bfloat16")
    with pytest.raises(CheckpointError, match=rf"{SOME}.*float16"):
        rdk.load_model(folder, dtype="float16")


def test_integers_and_mixed_dtypes_are_refused(tmp_path):
    tensors = random_tensors(CONFIG, 0)
    whole = tensors | {SOME: tensors[SOME].to(torch.int8)}
    with pytest.raises(CheckpointError, match=rf"{SOME}.*int8"):
        rdk.load_model(write_checkpoint(tmp_path / "int", tensors=whole))
    mixed = tensors | {SOME: tensors[SOME].bfloat16()}
    folder = write_checkpoint(tmp_path / "mixed", tensors=mixed)
    with pytest.raises(CheckpointError, match=r"bfloat16.*float32.*dtype="):
        rdk.load_model(folder)
    assert rdk.load_model(folder, dtype="float32").dtype == torch.float32


@pytest.mark.parametrize("keep", [0, 4, 100, 3000, -1])
def test_truncated_file(tmp_path, keep):
    file = write_checkpoint(tmp_path / "m") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a safetensors file"):
        rdk.load_model(file.parent)


def test_not_safetensors(tmp_path):
    file = write_checkpoint(tmp_path / "m") / "model.safetensors"
    torch.save({"a": torch.zeros(3)}, file)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a safetensors file"):
        rdk.load_model(file.parent)


def test_absent_folder_and_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere: no such model folder.*demo-automaton"):
        rdk.load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        rdk.load_model(tmp_path)
    folder = write_checkpoint(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        rdk.load_model(folder)


@pytest.fixture
def sharded(tmp_path):
    rdk.save_model(tiny_model(0), tmp_path / "m", max_shard_bytes=20_000)
    return tmp_path / "m"


def test_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name}: no such file"):
        rdk.load_model(sharded)


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": 3}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": null, "b": "x"}}',
        '{"weight_map": {"a": ["x"]}}',
    ],
)
def test_broken_index_is_named(sharded, index):
    (sharded / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"index\.json: not a safetensors index"):
        rdk.load_model(sharded)


def test_index_that_forgets_a_shard(sharded):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    lost = index["weight_map"].popitem()[1]
    kept = {n: f for n, f in index["weight_map"].items() if f != lost}
    path.write_text(json.dumps({"weight_map": kept}))
    with pytest.raises(CheckpointError, match="missing tensor"):
        rdk.load_model(sharded)


def test_tensor_in_two_shards(sharded):
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: tensor}, second)
    with pytest.raises(CheckpointError, match=f"{name} is in two files"):
        rdk.load_model(sharded)


def test_tokenizer_larger_than_the_vocabulary(tmp_path):
    folder = write_checkpoint(tmp_path / "m")
    write_tokenizer(folder, CONFIG.vocab_size)
    assert rdk.load_model(folder).tokenizer.vocabulary == CONFIG.vocab_size
    write_tokenizer(folder, CONFIG.vocab_size + 1)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: 65 tokens"):
        rdk.load_model(folder)


def test_broken_tokenizer(tmp_path):
    folder = write_checkpoint(tmp_path / "m")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        rdk.load_model(folder)


def test_config_errors_name_the_file(tmp_path):
    folder = write_checkpoint(tmp_path / "m", n_heads=None)
    with pytest.raises(CheckpointError, match=r"m/config\.json: missing key\(s\): n_heads"):
        rdk.load_model(folder)


def test_folder_as_text_and_as_path(tmp_path):
    folder = write_checkpoint(tmp_path / "m")
    assert same_weights(rdk.load_model(str(folder)), rdk.load_model(folder))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
def test_weights_stay_mapped(tmp_path, seed):
    """Neither dtype nor device changes: every large tensor lies in a mapping of the file."""
    folder = write_checkpoint(tmp_path / "m", seed=seed)
    model = rdk.load_model(folder)
    name = str(folder / "model.safetensors")
    spans = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(name)
    ]
    assert spans, "the file is not mapped"
    for tensor in model.weights.tensors():
        assert any(low <= tensor.data_ptr() < high for low, high in spans)


def test_converting_never_holds_a_second_model(tmp_path, monkeypatch):
    """Tensors are read one after another: no two source tensors are alive at a time."""
    import weakref

    from rdkernels.models import tensor_files

    folder = write_checkpoint(tmp_path / "m")
    alive: list[weakref.ref] = []
    most = 0
    real = tensor_files.safe_open

    class Handle:
        def __init__(self, handle):
            self.handle = handle

        def __getattr__(self, name):
            return getattr(self.handle, name)

        def get_tensor(self, name):
            nonlocal most
            tensor = self.handle.get_tensor(name)
            alive.append(weakref.ref(tensor))
            most = max(most, sum(reference() is not None for reference in alive))
            return tensor

    class Opened:
        def __init__(self, *args, **kwargs):
            self.opened = real(*args, **kwargs)

        def __enter__(self):
            return Handle(self.opened.__enter__())

        def __exit__(self, *reason):
            return self.opened.__exit__(*reason)

    monkeypatch.setattr(tensor_files, "safe_open", Opened)
    rdk.load_model(folder, dtype="bfloat16")
    assert len(alive) == len(random_tensors(CONFIG, 0))
    assert most == 1


def test_a_copied_folder_loads(tmp_path):
    """Nothing in a saved model points back to where it was saved."""
    rdk.save_model(tiny_model(0), tmp_path / "a", max_shard_bytes=20_000)
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert same_weights(rdk.load_model(tmp_path / "b"), tiny_model(0))


@pytest.mark.parametrize("device", ["cuda:99", "abacus", 3.5, None])
def test_devices_that_are_not_there(tmp_path, device):
    with pytest.raises(ArgumentError, match="device"):
        rdk.load_model(write_checkpoint(tmp_path / "m"), device=device)
