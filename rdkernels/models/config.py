"""The shape of a recurrent-depth model, read from a Hugging Face style ``config.json``."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rdkernels.errors import CheckpointError, is_number, is_whole

MODEL_TYPES = ("huginn_raven",)

# config.json key -> field; a key of the model family that is not here must be in _INERT_KEYS.
_KEYS = {
    "n_embd": "hidden_size",
    "n_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "n_layers_in_prelude": "prelude_layers",
    "n_layers_in_recurrent_block": "core_layers",
    "n_layers_in_coda": "coda_layers",
    "block_size": "context_length",
    "padded_vocab_size": "vocab_size",
    "norm_eps": "norm_eps",
    "rope_base": "rope_base",
    "qk_bias": "qk_bias",
    "tie_embeddings": "tie_embeddings",
    "mean_recurrence": "mean_recurrence",
}
# What the released code reads only in training, or what follows from the keys above.
_INERT_KEYS = {
    *("activation_checkpoint_impl", "architecture_class_name", "architectures", "auto_map"),
    *("block_class_name", "effective_expected_depth", "init_orthogonal", "init_strategy"),
    *("init_values", "mean_backprop_depth", "model_type", "n_layers", "padding_multiple"),
    *("sampling_scheme", "test_time_noise_type", "torch_dtype", "dtype", "vocab_size"),
    *("transformers_version", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache"),
    *("num_attention_heads", "num_hidden_layers", "hidden_size", "max_position_embeddings"),
    *("geom_mean_recurrence", "lockstep_n", "lockstep_k", "mcleish_throttle"),
    *("_name_or_path", "name", "_attn_implementation_autoset", "tie_word_embeddings"),
}
# Options of the family that this package implements with one value only.
_REQUIRED = {
    "bias": (False,),
    "injection_type": ("linear",),
    "mlp_class_name": ("GatedMLP",),
    "nonlin_name": ("SiLU",),
    "norm_class_name": ("RMSNorm_llama", "RMSNorm"),
    "state_init": ("like-init",),
    "test_time_noise": (0, 0.0),
    "qk_norm": (False,),
}


_SWITCHES = {"qk_bias", "tie_embeddings"}
_NUMBERS = {"norm_eps", "rope_base"}  # every other field is a whole number


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of a Huginn-family model (names of DESIGN, not of the checkpoint).

    ``hidden_size`` D, ``num_heads`` H, ``num_kv_heads`` HK, ``head_dim`` d, ``intermediate_size``
    F, ``context_length`` the most positions of a sequence, ``vocab_size`` rows of the embedding,
    ``mean_recurrence`` the training average of num_steps.
    """

    hidden_size: int
    num_heads: int
    intermediate_size: int
    prelude_layers: int
    core_layers: int
    coda_layers: int
    context_length: int
    vocab_size: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float = 1e-6
    rope_base: float = 50000.0
    qk_bias: bool = True
    tie_embeddings: bool = True
    mean_recurrence: int = 32

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in _SWITCHES and not 0 < value < math.inf:
                raise CheckpointError(f"config: {field.name}: expected a value > 0, got {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"config: num_heads: expected a multiple of num_kv_heads {self.num_kv_heads}, "
                f"got {self.num_heads}"
            )
        if self.qk_bias and self.num_kv_heads != self.num_heads:
            raise CheckpointError(
                f"config: qk_bias: one bias per head needs num_kv_heads = num_heads = "
                f"{self.num_heads}, got {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise CheckpointError(f"config: head_dim: expected even, got {self.head_dim}")

    @property
    def state_std(self) -> float:
        """Deviation of initial states: ``sqrt(2 / (5 D)) * embed_scale``."""
        return math.sqrt(2.0 / (5.0 * self.hidden_size)) * self.embed_scale

    @property
    def embed_scale(self) -> float:
        return math.sqrt(self.hidden_size)

    @staticmethod
    def from_dict(data: dict[str, Any], source: str = "config") -> ModelConfig:
        """Read the keys of ``config.json``; unknown keys and unsupported values are refused.

        Raises:
            CheckpointError: names the key, what is supported, and what was given.
        """
        kind = data.get("model_type")
        if kind not in MODEL_TYPES:
            raise CheckpointError(
                f"{source}: model_type: expected one of {', '.join(MODEL_TYPES)}, got {kind!r}"
            )
        unknown = data.keys() - _KEYS.keys() - _INERT_KEYS - _REQUIRED.keys()
        if unknown:
            raise CheckpointError(f"{source}: unknown key(s): {', '.join(sorted(unknown))}")
        for key, values in _REQUIRED.items():
            if data.get(key, values[0]) not in values:
                raise CheckpointError(f"{source}: {key}: expected {values[0]!r}, got {data[key]!r}")
        if data.get("block_class_name", "SandwichBlock") != "SandwichBlock":
            got = data["block_class_name"]
            raise CheckpointError(f"{source}: block_class_name: expected SandwichBlock, got {got}")
        values = {field: data[key] for key, field in _KEYS.items() if key in data}
        _check_types(values, source)
        if "vocab_size" in data:
            _check_types({"vocab_size": data["vocab_size"]}, source)
            values.setdefault("vocab_size", data["vocab_size"])
        if "hidden_size" in values and "num_heads" in values:
            values.setdefault("num_kv_heads", values["num_heads"])
            values.setdefault("head_dim", values["hidden_size"] // max(values["num_heads"], 1))
        missing = sorted(
            key
            for key, field in _KEYS.items()
            if field not in values and field not in _SWITCHES | _NUMBERS | {"mean_recurrence"}
        )
        if missing:
            raise CheckpointError(f"{source}: missing key(s): {', '.join(missing)}")
        return ModelConfig(**values)

    @staticmethod
    def from_file(path: Path) -> ModelConfig:
        """Read ``config.json``. Raises :class:`CheckpointError` where it is absent or malformed."""
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; a model folder holds config.json")
        try:
            data = json.loads(path.read_text())
        except ValueError as error:
            raise CheckpointError(f"{path}: not valid JSON: {error}") from None
        if not isinstance(data, dict):
            raise CheckpointError(f"{path}: expected a JSON object, got {type(data).__name__}")
        return ModelConfig.from_dict(data, str(path))

    def to_dict(self, dtype: str = "float32") -> dict[str, Any]:
        """The ``config.json`` content that :meth:`from_dict` reads back to an equal config."""
        data: dict[str, Any] = {key: getattr(self, field) for key, field in _KEYS.items()}
        return data | {
            "architectures": ["RavenForCausalLM"],
            "architecture_class_name": "RecurrentGPT",
            "model_type": MODEL_TYPES[0],
            "block_class_name": "SandwichBlock",
            "bias": False,
            "injection_type": "linear",
            "mlp_class_name": "GatedMLP",
            "nonlin_name": "SiLU",
            "norm_class_name": "RMSNorm_llama",
            "state_init": "like-init",
            "n_layers": self.prelude_layers + self.core_layers + self.coda_layers,
            "vocab_size": self.vocab_size,
            "torch_dtype": dtype,
        }


def _check_types(values: dict[str, Any], source: str) -> None:
    keys = {field: key for key, field in _KEYS.items()}
    for field, value in values.items():
        if field in _SWITCHES:
            ok, expected = isinstance(value, bool), "true or false"
        elif field in _NUMBERS:
            ok, expected = is_number(value), "a number"
        else:
            ok, expected = is_whole(value), "a whole number"
        if not ok:
            raise CheckpointError(f"{source}: {keys[field]}: expected {expected}, got {value!r}")
