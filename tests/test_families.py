"""The registry of families: a family in one file, models of other styles from end to end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

import rdkernels as rdk
from rdkernels.errors import ArgumentError, CheckpointError
from rdkernels.models.checkpoint import default_stop_tokens, named_tensors
from rdkernels.models.config import BlockStyle, LoopStyle, ModelConfig
from rdkernels.models.families import (
    FAMILIES,
    ConfigKeys,
    Family,
    TensorNames,
    config_from_dict,
    config_to_dict,
    register,
)
from tests.support.tiny import CONFIG, random_prompts, tiny_model, write_checkpoint

KEYS = ConfigKeys(
    fields={
        "dim": "hidden_size",
        "heads": "num_heads",
        "kv_heads": "num_kv_heads",
        "head_size": "head_dim",
        "mlp": "intermediate_size",
        "first": "prelude_layers",
        "loop": "core_layers",
        "last": "coda_layers",
        "positions": "context_length",
        "words": "vocab_size",
    },
    inert=frozenset({"model_type", "ends"}),
    required={"act": ("silu",)},
)


class Toy(Family):
    """Llama's blocks and grouped heads, and no norm in front of the coda."""

    name = "toy"
    model_types = ("toy_looped",)

    def read_config(self, data: Mapping[str, Any], source: str) -> ModelConfig:
        values = KEYS.read(data, source)
        KEYS.expect_all(values, set(), source)
        block = BlockStyle("pre", "half", qk_bias=False)
        loop = LoopStyle(norm_before_coda=False)
        return ModelConfig(
            **values, block=block, loop=loop, tie_embeddings=False, mean_recurrence=8, family="toy"
        )

    def write_config(self, config: ModelConfig, dtype: str) -> dict[str, Any]:
        data = {key: getattr(config, name) for key, name in KEYS.fields.items()}
        return data | {"model_type": "toy_looped", "act": "silu", "ends": 7}

    def tensor_names(self, config: ModelConfig) -> TensorNames:
        return TensorNames(
            *("tokens", "head", "inject", "norm"),
            parts={"prelude": "first.{}.", "core": "loop.{}.", "coda": "last.{}."},
            block={
                "norm_1": "norm_a",
                "norm_3": "norm_b",
                "wqkv": "qkv",
                "attn_proj": "out",
                "mlp_fc": "up",
                "mlp_proj": "down",
            },
            ignored=frozenset({"angles"}),
        )

    def stop_tokens(self, data: Mapping[str, Any]) -> object:
        return data.get("ends")


CONFIG_OF_TOY = replace(
    CONFIG,
    num_kv_heads=1,
    tie_embeddings=False,
    block=BlockStyle("pre", "half", qk_bias=False),
    loop=LoopStyle(norm_before_coda=False),
    family="toy",
)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    for name, family in dict(FAMILIES).items():
        monkeypatch.setitem(FAMILIES, name, family)  # whatever is added is gone afterwards
    register(Toy())
    yield
    del FAMILIES["toy"]


def test_a_family_is_loaded_run_and_saved(tmp_path, seed):
    folder = write_checkpoint(tmp_path / "a", CONFIG_OF_TOY, seed=seed)
    model = rdk.load_model(folder)
    assert model.config == CONFIG_OF_TOY
    assert {"first.0.norm_a", "loop.1.norm_b", "last.0.qkv"} <= dict(named_tensors(model)).keys()
    assert model.weights.core[0].norm_2 is None and model.weights.core[0].qk_bias is None
    rdk.save_model(model, tmp_path / "b")
    again = rdk.load_model(tmp_path / "b")
    assert again.config == model.config
    for (name, got), (same, want) in zip(named_tensors(again), named_tensors(model), strict=True):
        assert name == same and torch.equal(got, want)
    assert default_stop_tokens(tmp_path / "b") == (7,)
    (prompt,) = random_prompts(seed, [5])
    options = {"max_new_tokens": 8, "sampler": rdk.Autoregressive(num_steps=3), "seed": seed}
    assert (
        rdk.generate(again, [prompt], **options).tokens
        == rdk.generate(tiny_model(seed, CONFIG_OF_TOY), [prompt], **options).tokens
    )


@pytest.mark.parametrize("norm_before_coda", [True, False])
@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize(
    "sampler",
    [rdk.Autoregressive(num_steps=4), rdk.DiffusionForcing(num_steps=4)],
    ids=["autoregressive", "diffusion"],
)
def test_other_styles_generate_the_same_by_eager_and_by_what_serves(
    seed, placement, norm_before_coda, sampler
):
    block = BlockStyle(placement, "half", qk_bias=placement == "post")
    config = replace(CONFIG, block=block, loop=LoopStyle(norm_before_coda=norm_before_coda))
    prompts = random_prompts(seed, [6, 3])
    options = {"max_new_tokens": 10, "sampler": sampler, "seed": seed}
    served = rdk.generate(tiny_model(seed, config), prompts, **options).tokens
    eager = rdk.generate(tiny_model(seed, config, backend="eager"), prompts, **options).tokens
    assert served == eager


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act": "gelu"}, "act: expected 'silu', got 'gelu'"),
        ({"rope": 3}, r"unknown key\(s\): rope"),
        ({"dim": 3.5}, "dim: expected a whole number, got 3.5"),
        ({"loop": 0}, "core_layers: expected a value > 0, got 0"),
    ],
)
def test_refusals_name_the_key(changes, message):
    with pytest.raises(CheckpointError, match=message):
        config_from_dict(config_to_dict(CONFIG_OF_TOY) | changes)
    data = config_to_dict(CONFIG_OF_TOY)
    del data["dim"]
    with pytest.raises(CheckpointError, match=r"missing key\(s\): dim"):
        config_from_dict(data)


def test_names_and_types_are_taken_once():
    with pytest.raises(ArgumentError, match=r"register: name: expected none of .*, got toy"):
        register(Toy())
    other = Toy()
    other.name = "other"
    with pytest.raises(ArgumentError, match=r"register: model_types: .*, got toy_looped"):
        register(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": BlockStyle("pre")}, "block: expected .* in Huginn"),
        ({"block": BlockStyle(rotation="half")}, "block: expected .* in Huginn"),
        ({"loop": LoopStyle(norm_before_coda=False)}, "loop: expected .* in Huginn"),
        ({"num_kv_heads": 1}, "qk_bias: one bias per head"),
        ({"family": "unheard"}, "family: expected one of huginn, toy, got 'unheard'"),
    ],
)
def test_nothing_is_saved_that_could_not_be_read_back(tmp_path, changes, message):
    model = tiny_model(0)
    model.config = replace(CONFIG, **changes)
    with pytest.raises(CheckpointError, match=message):
        rdk.save_model(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("style", "field", "value", "served"),
    [
        (BlockStyle, "placement", "huginn", "'sandwich' or 'pre' or 'post'"),
        (BlockStyle, "rotation", "adjacent", "'interleaved' or 'half'"),
        (BlockStyle, "qk_bias", 1, "True or False"),
        (BlockStyle, "norm", "l2", "'rms'"),
        (BlockStyle, "qk_norm", "rms", "'none'"),
        (LoopStyle, "injection", "additive", "'linear'"),
        (LoopStyle, "between_loops", "norm", "'none'"),
        (LoopStyle, "norm_before_coda", None, "True or False"),
    ],
)
def test_what_is_not_served_is_refused_by_name(style, field, value, served):
    with pytest.raises(CheckpointError, match=f"{field}: expected {served}, got {value!r}"):
        style(**{field: value})


def test_the_config_of_a_model_type_nobody_has(tmp_path):
    folder = write_checkpoint(tmp_path / "m")
    data = json.loads((folder / "config.json").read_text()) | {"model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"expected one of huginn_raven, .*got 'llama'"):
        rdk.load_model(folder)
