"""Weight-only int8: what quantising does, and models that are loaded with ``weights="int8"``."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import rdkernels as rdk
from rdkernels.errors import ArgumentError, CheckpointError
from rdkernels.evaluation import compare
from rdkernels.models.demo import load_problems
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.models.tensor_files import page_out
from rdkernels.models.weights import QuantizedWeight
from rdkernels.ops import reasons
from tests.support.checking import assert_same_bits
from tests.support.tiny import CONFIG, GROUPED, random_tensors, tiny_model, write_checkpoint

EMBEDDING, SOME = "transformer.wte.weight", "transformer.core_block.1.mlp.fc.weight"
LINEAR = ("wqkv", "attn_proj", "mlp_fc", "mlp_proj")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_quantised_weights_are_the_nearest(dtype, seed):
    weight = torch.randn(40, 33, dtype=torch.float64).to(dtype)
    weight[3] = 0
    weight[4] *= 1e-7 if dtype == torch.float16 else 1e-30
    before = weight.clone()
    quantized = QuantizedWeight.from_weight(weight)
    assert_same_bits(weight, before)
    assert quantized.values.dtype == torch.int8 and quantized.scale.dtype == torch.float32
    assert quantized.values.abs().amax() == 127 and quantized.values.amin() >= -127
    error = (quantized.dequantized().double() - weight.double()).abs()
    assert (error <= quantized.scale[:, None] * 0.5001).all()
    assert not quantized.dequantized()[3].any()


def test_huge_and_tiny_weights_are_quantised(seed):
    largest, smallest = torch.finfo(torch.float32).max / 2, 1e-45
    weight = torch.tensor([[largest, -largest], [smallest, 0.0], [1e-38, -1e-38]])
    quantized = QuantizedWeight.from_weight(weight)
    assert quantized.values[0].tolist() == [127, -127]
    assert quantized.scale.isfinite().all() and (quantized.scale > 0).all()
    assert quantized.dequantized().isfinite().all()


def test_quantising_in_slices_changes_nothing(monkeypatch, seed):
    weight = torch.randn(50, 20)
    whole = QuantizedWeight.from_weight(weight)
    monkeypatch.setattr("rdkernels.models.weights._SLICE_ELEMENTS", 70)
    sliced = QuantizedWeight.from_weight(weight)
    assert_same_bits(sliced.values, whole.values)
    assert_same_bits(sliced.scale, whole.scale)


@pytest.mark.parametrize("config", [CONFIG, GROUPED], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_weights(tmp_path, seed, config, dtype):
    """Every linear layer is the nearest int8 one; everything else is as it was."""
    plain = tiny_model(seed, config, dtype)
    folder = write_checkpoint(tmp_path / "m", config, random_tensors(config, seed, dtype))
    model = rdk.load_model(folder, weights="int8")
    assert model.weights.quantized and not plain.weights.quantized
    assert model.dtype == dtype
    linear = 0
    pairs = [(plain.weights, model.weights)]
    for part in ("prelude", "core", "coda"):
        pairs += zip(getattr(plain.weights, part), getattr(model.weights, part), strict=True)
    for one, other in pairs:
        for field in fields(one):
            was, now = getattr(one, field.name), getattr(other, field.name)
            if isinstance(now, QuantizedWeight):
                linear += 1
                want = QuantizedWeight.from_weight(was)
                assert torch.equal(now.values, want.values) and torch.equal(now.scale, want.scale)
            elif isinstance(now, torch.Tensor):
                assert torch.equal(now, was) and now.dtype == dtype
    assert linear == 4 * len(pairs[1:]) + 2  # and the adapter and the head
    weights = model.weights
    matrices = [getattr(b, n) for b in weights.core for n in LINEAR] + [weights.adapter]
    bytes_of_others = sum(
        t.numel() * t.element_size()
        for b in weights.core
        for t in (b.norm_1, b.norm_2, b.norm_3, b.norm_4, b.qk_bias)
        if t is not None
    )
    core = sum(m.values.numel() + 4 * m.scale.numel() for m in matrices) + bytes_of_others
    assert model.parameter_bytes("core") == core < plain.parameter_bytes("core")
    assert model.parameter_bytes() > weights.embedding.numel() * dtype.itemsize + core


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", [None, "eager"])
def test_int8_model_computes_what_its_weights_say(tmp_path, seed, dtype, backend):
    """The same as a plain model of the dequantised weights, up to rounding."""
    tensors = random_tensors(GROUPED, seed)
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and name != EMBEDDING:
            tensors[name] = QuantizedWeight.from_weight(tensor).dequantized()
    folder = write_checkpoint(tmp_path / "m", GROUPED, tensors)
    model = rdk.load_model(folder, dtype=dtype, weights="int8", backend=backend)
    tokens = torch.randint(GROUPED.vocab_size, (2, 40))
    exact, _ = rdk.load_model(folder, dtype="float64").forward(tokens, 4, seed=seed)
    same, _ = rdk.load_model(folder, dtype=dtype).forward(tokens, 4, seed=seed)
    logits, _ = model.forward(tokens, 4, seed=seed)
    error, allowed = (logits - exact).abs().mean(), (same - exact).abs().mean()
    assert error <= 2 * allowed + (0.05 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("num_rows", [1, 80])
def test_int8_blocks_take_one_call(tmp_path, seed, num_rows, monkeypatch):
    """With the results of the ops one by one, to the bit, whatever the number of rows."""
    if reasons("core_iterations", "cpu", torch.bfloat16)["native"]:
        pytest.skip("no native kernels")
    config = replace(CONFIG, context_length=96)
    tensors = random_tensors(config, seed, torch.bfloat16)
    model = rdk.load_model(write_checkpoint(tmp_path / "m", config, tensors), weights="int8")
    tokens = torch.randint(config.vocab_size, (1, num_rows))
    called, real = [], RecurrentDepthModel._native

    def listen(self, name, x, rows=None):
        found = real(self, name, x, rows)
        called.append((name, found is not None))
        return found

    monkeypatch.setattr(RecurrentDepthModel, "_native", listen)
    logits, states = model.forward(tokens, 3, seed=seed)
    assert {"transformer_blocks", "core_iterations"} <= {name for name, _ in called}
    assert all(served for _, served in called)
    monkeypatch.setattr(RecurrentDepthModel, "_native", lambda *_: None)
    want_logits, want_states = model.forward(tokens, 3, seed=seed)
    assert_same_bits(logits, want_logits)
    assert_same_bits(states, want_states)


@pytest.mark.parametrize("weights", ["int4", "INT8", "", 8, torch.int8])
def test_unknown_weights_are_refused(tmp_path, weights):
    with pytest.raises(ArgumentError, match=r"weights.*None or 'int8'"):
        rdk.load_model(write_checkpoint(tmp_path / "m"), weights=weights)


def test_int8_is_refused_on_cuda_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    folder = write_checkpoint(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(ArgumentError, match=r"weights.*CPU only"):
        rdk.load_model(folder, device="cuda", weights="int8")


def test_int8_models_are_not_saved(tmp_path):
    model = rdk.load_model(write_checkpoint(tmp_path / "m"), weights="int8")
    with pytest.raises(ArgumentError, match=r"model.*int8"):
        rdk.save_model(model, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_mixed_dtypes_are_refused_with_int8_too(tmp_path):
    tensors = random_tensors(CONFIG, 0)
    tensors[SOME] = tensors[SOME].bfloat16()
    with pytest.raises(CheckpointError, match="mixed dtypes"):
        rdk.load_model(write_checkpoint(tmp_path / "m", tensors=tensors), weights="int8")


@pytest.mark.parametrize("name", ["demo", "demo-automaton"])
def test_int8_demo_models_still_answer(name):
    """As many problems as the bf16 model, give or take one in ten."""
    problems = load_problems(name, limit=20)
    sampler = rdk.DiffusionForcing(8, inner_recurrence=4)
    right = {}
    for weights in (None, "int8"):
        model = rdk.load_model(name, weights=weights)
        (row,) = compare.compare(
            model, problems, [compare.Contender("diffusion-forcing", sampler)], batch_size=20
        )
        right[weights] = round(row.accuracy * len(problems))
    assert right["int8"] >= max(12, right[None] - 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_generation_does_not_depend_on_the_batch(tmp_path, seed, dtype):
    """Alone or together, one row in flight or autoregressive: the same tokens."""
    folder = write_checkpoint(tmp_path / "m", CONFIG, random_tensors(CONFIG, seed, dtype))
    model = rdk.load_model(folder, weights="int8")
    prompts = [[1, 2, 3], [4], [5, 6]]
    one_row = rdk.DiffusionForcing(6, inner_recurrence=6, max_wavefront=1, depth_limit=6)
    options = {"max_new_tokens": 10, "seed": seed, "stop_tokens": ()}
    expected = rdk.generate(model, prompts, sampler=rdk.Autoregressive(6), **options).tokens
    assert rdk.generate(model, prompts, sampler=one_row, **options).tokens == expected


def test_an_int8_model_leaves_its_file(tmp_path, seed):
    """Nothing of it stays mapped, so only the int8 weights are resident."""
    folder = write_checkpoint(tmp_path / "m", seed=seed)
    model = rdk.load_model(folder, weights="int8")
    assert all(torch.isfinite(t).all() for t in model.weights.tensors() if t.is_floating_point())
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc")
    assert str(folder) not in maps.read_text()
    plain = rdk.load_model(folder)
    assert str(folder) in maps.read_text()
    del plain, model


def test_paging_out_changes_nothing(seed):
    values = torch.randn(5000)
    expected = values.clone()
    page_out(values)
    page_out(values[:3])
    assert torch.equal(values, expected)
