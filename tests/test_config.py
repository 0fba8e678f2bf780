"""ModelConfig: config.json in, strictly; every refusal names the key."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from rdkernels import ModelConfig
from rdkernels.errors import CheckpointError
from rdkernels.models.config import BlockStyle
from rdkernels.models.families import config_from_dict, config_from_file, config_to_dict
from tests.support.tiny import CONFIG, GROUPED
from tests.test_golden import FOLDER

RELEASED = json.loads((FOLDER / "config.json").read_text())


def test_released_layout():
    config = config_from_file(FOLDER / "config.json")
    assert config == ModelConfig(
        hidden_size=64,
        num_heads=2,
        num_kv_heads=2,
        head_dim=32,
        intermediate_size=128,
        prelude_layers=2,
        core_layers=4,
        coda_layers=2,
        context_length=256,
        vocab_size=320,
        norm_eps=1e-6,
        rope_base=50000,
        block=BlockStyle(qk_bias=True),
        tie_embeddings=True,
        mean_recurrence=32,
    )
    assert config.embed_scale == 8.0
    assert config.state_std == pytest.approx(math.sqrt(0.4))


@pytest.mark.parametrize("config", [CONFIG, GROUPED, replace(CONFIG, norm_eps=0.5, rope_base=9.5)])
def test_round_trip(config):
    data = json.loads(json.dumps(config_to_dict(config, "bfloat16")))
    assert data["torch_dtype"] == "bfloat16"
    assert config_from_dict(data) == config


def test_defaults_of_absent_keys():
    data = dict(RELEASED)
    for key in ("norm_eps", "rope_base", "qk_bias", "tie_embeddings", "mean_recurrence"):
        del data[key]
    for key in ("num_key_value_heads", "head_dim", "padded_vocab_size"):
        del data[key]
    assert config_from_dict(data) == config_from_dict(RELEASED)


REQUIRED_KEYS = (
    *("n_embd", "n_heads", "intermediate_size", "n_layers_in_prelude"),
    *("n_layers_in_recurrent_block", "n_layers_in_coda", "block_size"),
)


@pytest.mark.parametrize("key", REQUIRED_KEYS)
def test_missing_key_is_named(key):
    data = {k: v for k, v in RELEASED.items() if k != key}
    with pytest.raises(CheckpointError, match=rf"missing.*{key}"):
        config_from_dict(data)


def test_missing_vocabulary_is_named():
    data = {k: v for k, v in RELEASED.items() if "vocab" not in k}
    with pytest.raises(CheckpointError, match=r"missing.*padded_vocab_size"):
        config_from_dict(data)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("model_type", None),
        ("model_type", ["huginn_raven"]),
        ("bias", True),
        ("injection_type", "add"),
        ("mlp_class_name", "BaseMLP"),
        ("nonlin_name", "GELU"),
        ("norm_class_name", "LayerNorm"),
        ("block_class_name", "TransformerPreNormBlock"),
        ("state_init", "zero"),
        ("test_time_noise", 0.1),
    ],
)
def test_unsupported_values_are_named(key, value):
    with pytest.raises(CheckpointError, match=rf"{key}: expected"):
        config_from_dict(RELEASED | {key: value})


def test_unknown_keys_are_named():
    with pytest.raises(CheckpointError, match=r"unknown key\(s\): n_experts, rope_scaling"):
        config_from_dict(RELEASED | {"rope_scaling": 2, "n_experts": 4})


WRONG_TYPES = [None, "64", 64.0, [64], True, {}]


@pytest.mark.parametrize("value", WRONG_TYPES, ids=repr)
@pytest.mark.parametrize("key", [*REQUIRED_KEYS, "padded_vocab_size", "num_key_value_heads"])
def test_wrong_types_of_sizes(key, value):
    with pytest.raises(CheckpointError, match=rf"{key}: expected"):
        config_from_dict(RELEASED | {key: value})


@pytest.mark.parametrize("value", WRONG_TYPES[:2] + WRONG_TYPES[3:], ids=repr)
@pytest.mark.parametrize("key", ["norm_eps", "rope_base"])
def test_wrong_types_of_numbers(key, value):
    with pytest.raises(CheckpointError, match=rf"{key}: expected"):
        config_from_dict(RELEASED | {key: value})


@pytest.mark.parametrize("value", [None, 1, "true", 0.0], ids=repr)
@pytest.mark.parametrize("key", ["qk_bias", "tie_embeddings"])
def test_wrong_types_of_switches(key, value):
    with pytest.raises(CheckpointError, match=rf"{key}: expected"):
        config_from_dict(RELEASED | {key: value})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n_embd": 0}, "hidden_size"),
        ({"n_heads": 0}, "heads"),
        ({"n_layers_in_coda": 0}, "coda_layers"),
        ({"block_size": -1}, "context"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"norm_eps": -1e-6}, "norm_eps"),
        ({"rope_base": float("inf")}, "rope_base"),
        ({"n_heads": 3, "num_key_value_heads": 2}, "heads"),
        ({"n_heads": 4}, "qk_bias"),
        ({"head_dim": 31}, "head_dim"),
    ],
)
def test_impossible_sizes(changes, named):
    with pytest.raises(CheckpointError, match=named):
        config_from_dict(RELEASED | changes)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[1]", "JSON object"),
    ],
)
def test_broken_files(tmp_path, content, named):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=named):
        config_from_file(path)


def test_absent_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        config_from_file(tmp_path / "config.json")
