"""Huginn-0125 and the demo models: ``transformer.wte.weight`` and so on, sandwich norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rdkernels.errors import CheckpointError
from rdkernels.models.config import BlockStyle, LoopStyle, ModelConfig
from rdkernels.models.families._family import ConfigKeys, Family, TensorNames

_KEYS = ConfigKeys(
    fields={
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
    },
    # What the released code reads only in training, or what follows from the keys above.
    inert=frozenset(
        {
            *("activation_checkpoint_impl", "architecture_class_name", "architectures", "auto_map"),
            *("effective_expected_depth", "init_orthogonal", "init_strategy"),
            *("init_values", "mean_backprop_depth", "model_type", "n_layers", "padding_multiple"),
            *("sampling_scheme", "test_time_noise_type", "torch_dtype", "dtype", "vocab_size"),
            *("transformers_version", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache"),
            *("num_attention_heads", "num_hidden_layers", "hidden_size", "max_position_embeddings"),
            *("geom_mean_recurrence", "lockstep_n", "lockstep_k", "mcleish_throttle"),
            *("_name_or_path", "name", "_attn_implementation_autoset", "tie_word_embeddings"),
        }
    ),
    required={
        "bias": (False,),
        "injection_type": ("linear",),
        "mlp_class_name": ("GatedMLP",),
        "nonlin_name": ("SiLU",),
        "norm_class_name": ("RMSNorm_llama", "RMSNorm"),
        "state_init": ("like-init",),
        "test_time_noise": (0, 0.0),
        "qk_norm": (False,),
        "block_class_name": ("SandwichBlock",),
    },
)
_OPTIONAL = {"norm_eps", "rope_base", "qk_bias", "tie_embeddings", "mean_recurrence"}
_NAMES = TensorNames(
    embedding="transformer.wte.weight",
    head="lm_head.weight",
    adapter="transformer.adapter.weight",
    final_norm="transformer.ln_f.weight",
    parts={
        "prelude": "transformer.prelude.{}.",
        "core": "transformer.core_block.{}.",
        "coda": "transformer.coda.{}.",
    },
    block={
        "norm_1": "norm_1.weight",
        "norm_2": "norm_2.weight",
        "norm_3": "norm_3.weight",
        "norm_4": "norm_4.weight",
        "wqkv": "attn.Wqkv.weight",
        "qk_bias": "attn.qk_bias",
        "attn_proj": "attn.proj.weight",
        "mlp_fc": "mlp.fc.weight",
        "mlp_proj": "mlp.proj.weight",
    },
    ignored=frozenset({"freqs_cis"}),
)


class Huginn(Family):
    """The layout of the released Huginn-0125."""

    name = "huginn"
    model_types = ("huginn_raven",)

    def read_config(self, data: Mapping[str, Any], source: str) -> ModelConfig:
        values = _KEYS.read(data, source)
        if "vocab_size" in data:
            sizes = ConfigKeys({"vocab_size": "vocab_size"}, frozenset(data.keys()))
            values = sizes.read(data, source) | values
        if "hidden_size" in values and "num_heads" in values:
            values.setdefault("num_kv_heads", values["num_heads"])
            values.setdefault("head_dim", values["hidden_size"] // max(values["num_heads"], 1))
        _KEYS.expect_all(values, _OPTIONAL, source)
        block = BlockStyle(qk_bias=values.pop("qk_bias", True))
        config = ModelConfig(**values, block=block, family=self.name)
        _check(config)
        return config

    def write_config(self, config: ModelConfig, dtype: str) -> dict[str, Any]:
        _check(config)
        flat = vars(config) | {"qk_bias": config.block.qk_bias}
        data: dict[str, Any] = {key: flat[name] for key, name in _KEYS.fields.items()}
        return data | {
            "architectures": ["RavenForCausalLM"],
            "architecture_class_name": "RecurrentGPT",
            "model_type": self.model_types[0],
            "block_class_name": "SandwichBlock",
            "bias": False,
            "injection_type": "linear",
            "mlp_class_name": "GatedMLP",
            "nonlin_name": "SiLU",
            "norm_class_name": "RMSNorm_llama",
            "state_init": "like-init",
            "n_layers": config.prelude_layers + config.core_layers + config.coda_layers,
            "vocab_size": config.vocab_size,
            "torch_dtype": dtype,
        }

    def tensor_names(self, config: ModelConfig) -> TensorNames:
        return _NAMES

    def stored_shape(
        self, config: ModelConfig, name: str, shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        return (2, 1, config.num_heads, config.head_dim) if name == "qk_bias" else shape


def _check(config: ModelConfig) -> None:
    served = BlockStyle(qk_bias=config.block.qk_bias)
    if config.block != served:
        raise CheckpointError(f"config: block: expected {served} in Huginn, got {config.block}")
    if config.loop != LoopStyle():
        raise CheckpointError(f"config: loop: expected {LoopStyle()} in Huginn, got {config.loop}")
    if config.block.qk_bias and config.num_kv_heads != config.num_heads:
        raise CheckpointError(
            f"config: qk_bias: one bias per head needs num_kv_heads = num_heads = "
            f"{config.num_heads}, got {config.num_kv_heads}"
        )


FAMILY = Huginn()
