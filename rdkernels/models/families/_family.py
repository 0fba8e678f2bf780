"""What a family of checkpoints has to say of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rdkernels.errors import CheckpointError, is_number, is_whole
from rdkernels.models.config import ModelConfig

_SWITCHES = {"qk_bias", "tie_embeddings"}
_NUMBERS = {"norm_eps", "rope_base"}  # every other field is a whole number


@dataclass(frozen=True)
class TensorNames:
    """Names of the tensors in a checkpoint.

    Attributes:
        embedding, head, adapter, final_norm: of these weights.
        parts: of ``prelude``, ``core`` and ``coda``: what is in front of a block's tensors, with
            ``{}`` for the number of the block.
        block: by field of :class:`rdkernels.models.weights.Block`: what is behind that.
        ignored: tensors that may be there and are not read.
    """

    embedding: str
    head: str
    adapter: str
    final_norm: str
    parts: Mapping[str, str]
    block: Mapping[str, str]
    ignored: frozenset[str] = frozenset()

    def of_block(self, part: str, number: int, name: str) -> str:
        """Of the field ``name`` of one block."""
        return self.parts[part].format(number) + self.block[name]


@dataclass(frozen=True)
class ConfigKeys:
    """The keys of a family's ``config.json``; a key that is in none of the three is refused.

    Attributes:
        fields: key to field of ``ModelConfig`` (or ``qk_bias``, a field of its block style).
        inert: keys that change nothing about inference.
        required: keys of which this package serves some values only; the first is the default.
    """

    fields: Mapping[str, str]
    inert: frozenset[str]
    required: Mapping[str, tuple[object, ...]] = field(default_factory=dict)

    def read(self, data: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Values by field, of the keys that are there.

        Raises:
            CheckpointError: names the key, what is supported, and what was given.
        """
        if unknown := data.keys() - self.fields.keys() - self.inert - self.required.keys():
            raise CheckpointError(f"{source}: unknown key(s): {', '.join(sorted(unknown))}")
        for key, served in self.required.items():
            if data.get(key, served[0]) not in served:
                raise CheckpointError(f"{source}: {key}: expected {served[0]!r}, got {data[key]!r}")
        for key, name in self.fields.items():
            if key in data:
                _check_type(key, name, data[key], source)
        return {name: data[key] for key, name in self.fields.items() if key in data}

    def expect_all(self, values: Mapping[str, Any], optional: set[str], source: str) -> None:
        """Refuse ``values`` where a field is missing, by its key."""
        missing = {k for k, name in self.fields.items() if name not in values.keys() | optional}
        if missing:
            raise CheckpointError(f"{source}: missing key(s): {', '.join(sorted(missing))}")


def _check_type(key: str, name: str, value: object, source: str) -> None:
    if name in _SWITCHES:
        ok, expected = isinstance(value, bool), "true or false"
    elif name in _NUMBERS:
        ok, expected = is_number(value), "a number"
    else:
        ok, expected = is_whole(value), "a whole number"
    if not ok:
        raise CheckpointError(f"{source}: {key}: expected {expected}, got {value!r}")


class Family(ABC):
    """One family of checkpoints: its ``config.json`` and the names of its tensors.

    Attributes:
        name: of the family, as ``ModelConfig.family`` has it.
        model_types: what ``model_type`` in ``config.json`` may be.
    """

    name: str
    model_types: tuple[str, ...]

    @abstractmethod
    def read_config(self, data: Mapping[str, Any], source: str) -> ModelConfig:
        """The config that ``config.json`` describes; ``source`` names the file in errors.

        Raises:
            CheckpointError: names the key, what is supported, and what was given.
        """

    @abstractmethod
    def write_config(self, config: ModelConfig, dtype: str) -> dict[str, Any]:
        """The ``config.json`` that :meth:`read_config` reads back to an equal config.

        Raises:
            CheckpointError: a checkpoint of this family cannot say what the config says.
        """

    @abstractmethod
    def tensor_names(self, config: ModelConfig) -> TensorNames:
        """Where the weights of a model of this config are."""

    def stored_shape(
        self, config: ModelConfig, name: str, shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        """The shape in which a block's field ``name``, here ``shape``, is stored."""
        return shape

    def stop_tokens(self, data: Mapping[str, Any]) -> object:
        """Where a text ends, as ``config.json`` says: an id, a list of ids or None."""
        return data.get("eos_token_id")
