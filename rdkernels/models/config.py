"""The shape of a recurrent-depth model, in this package's own words.

How a checkpoint of some family says it in its ``config.json``: :mod:`rdkernels.models.families`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from rdkernels.errors import CheckpointError
from rdkernels.ops import PLACEMENTS

_SWITCHES = {"tie_embeddings"}
_WORDS = {"family", "block", "loop"}


@dataclass(frozen=True)
class BlockStyle:
    """What the transformer blocks of a model have in common besides their sizes.

    The weights of a block follow from it: see :class:`rdkernels.models.weights.Block`.

    Attributes:
        placement: of the norms: ``sandwich`` (Huginn), ``pre`` (Llama) or ``post`` (OLMo), as in
            :func:`rdkernels.ops.transformer_blocks`.
        rotation: pairs of channels that the rotary embedding turns: ``interleaved``
            ``(2i, 2i+1)`` or ``half`` ``(i, i + d/2)``.
        qk_bias: whether q and k have a bias.
        norm: ``rms``, the only kind that is served.
        qk_norm: of q and k: ``none``, all that is served.

    Raises:
        CheckpointError: names the field, what is served, and what was given.
    """

    placement: str = "sandwich"
    rotation: str = "interleaved"
    qk_bias: bool = True
    norm: str = "rms"
    qk_norm: str = "none"

    def __post_init__(self) -> None:
        _expect_served("block", self.placement, "placement", PLACEMENTS)
        _expect_served("block", self.rotation, "rotation", ("interleaved", "half"))
        _expect_served("block", self.qk_bias, "qk_bias", (True, False))
        _expect_served("block", self.norm, "norm", ("rms",))
        _expect_served("block", self.qk_norm, "qk_norm", ("none",))


@dataclass(frozen=True)
class LoopStyle:
    """What happens around the core block.

    Attributes:
        injection: how the input embedding enters an iteration: ``linear``, a linear layer on
            ``state | embed``, the only way that is served.
        between_loops: what an iteration's state goes through before the next: ``none``, all that is
            served.
        norm_before_coda: whether the final norm is applied to the state in front of the coda too,
            and not only in front of the head.

    Raises:
        CheckpointError: names the field, what is served, and what was given.
    """

    injection: str = "linear"
    between_loops: str = "none"
    norm_before_coda: bool = True

    def __post_init__(self) -> None:
        _expect_served("loop", self.injection, "injection", ("linear",))
        _expect_served("loop", self.between_loops, "between_loops", ("none",))
        _expect_served("loop", self.norm_before_coda, "norm_before_coda", (True, False))


def _expect_served(part: str, value: object, name: str, served: tuple[object, ...]) -> None:
    if not any(value == one and type(value) is type(one) for one in served):
        expected = " or ".join(map(repr, served))
        raise CheckpointError(f"config: {part}.{name}: expected {expected}, got {value!r}")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of a recurrent-depth model, and the style of its blocks and its loop.

    ``hidden_size`` D, ``num_heads`` H, ``num_kv_heads`` HK, ``head_dim`` d, ``intermediate_size``
    F, ``context_length`` the most positions of a sequence, ``vocab_size`` rows of the embedding,
    ``mean_recurrence`` the training average of num_steps, ``family`` the layout in which
    ``save_model`` writes: a name in :data:`rdkernels.models.families.FAMILIES`.

    Raises:
        CheckpointError: names the field that is impossible or not served.
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
    tie_embeddings: bool = True
    mean_recurrence: int = 32
    block: BlockStyle = field(default_factory=BlockStyle)
    loop: LoopStyle = field(default_factory=LoopStyle)
    family: str = "huginn"

    def __post_init__(self) -> None:
        for size in fields(self):
            value = getattr(self, size.name)
            if size.name not in _SWITCHES | _WORDS and not 0 < value < math.inf:
                raise CheckpointError(f"config: {size.name}: expected a value > 0, got {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"config: num_heads: expected a multiple of num_kv_heads {self.num_kv_heads}, "
                f"got {self.num_heads}"
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
