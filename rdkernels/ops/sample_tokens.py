"""``sample_tokens``: one token per row of logits, greedy or with keyed Gumbel noise."""

from __future__ import annotations

import torch

from rdkernels.backends.eager import sampling
from rdkernels.dtypes import FLOATS
from rdkernels.ops.checks import expect, expect_tensor
from rdkernels.registry import define


def _check(
    logits: torch.Tensor,
    row_keys: torch.Tensor | None,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
) -> None:
    op = "sample_tokens"
    expect_tensor(op, "logits", logits, (None, None), FLOATS)
    expect(logits.size(1) > 0, op, "logits", "a vocabulary of at least one token", 0)
    finite = 0.0 <= temperature < float("inf")
    expect(finite, op, "temperature", "a finite value >= 0", temperature)
    expect(top_k >= 0, op, "top_k", "a count >= 0 (0: no limit)", top_k)
    expect(0.0 < top_p <= 1.0, op, "top_p", "0 < top_p <= 1", top_p)
    expect(0.0 <= min_p <= 1.0, op, "min_p", "0 <= min_p <= 1", min_p)
    if temperature > 0.0:
        expect(row_keys is not None, op, "row_keys", "a tensor at temperature > 0", "None")
        expect_tensor(op, "row_keys", row_keys, (logits.size(0), 3), torch.int32, like=logits)


def _fake(logits: torch.Tensor) -> torch.Tensor:
    return logits.new_empty(logits.size(0), dtype=torch.int64)


OP = define(sampling.sample_tokens, check=_check, fake=_fake, out=("out",))


def sample_tokens(
    logits: torch.Tensor,
    row_keys: torch.Tensor | None = None,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    backend: str | None = None,
) -> torch.Tensor:
    """Pick one token per row.

    Temperature 0 takes the largest logit (the lowest id among equals). Otherwise the token is
    ``argmax(logits + temperature * g)`` over the tokens kept by top-k, then top-p, then min-p,
    where the Gumbel noise ``g`` depends on (seed, sequence id, position, token) only: the same
    logits give the same token at every outer step, so a row's token settles when its logits do.
    Equal logits are kept or dropped together. A NaN logit counts as ``-inf``.

    Args:
        logits: ``[N, V]`` (fp32, bf16, fp16; fp64: eager only).
        row_keys: ``[N, 3]`` int32 (sequence id, position, step; the step is not used here);
            needed at temperature > 0.
        temperature: 0 is greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep tokens while the mass strictly above them is below this.
        min_p: keep tokens at least this fraction as likely as the most likely one.
        seed: 64-bit seed.
        backend: force ``native``, ``triton`` or ``eager``.

    Returns:
        ``[N]`` int64 token ids. A logit of ``+inf`` is a certain token; a row of nothing but NaN
        and ``-inf`` gives token 0.

    Raises:
        ArgumentError: shapes, dtypes or ranges do not fit.
        BackendError: the forced provider cannot serve; says why.
    """
    function = OP.provider(logits, backend)
    return function(logits, row_keys, temperature, top_k, top_p, min_p, seed)
