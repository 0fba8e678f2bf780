"""A tiny tokenizer whose tokens are single letters, so that strings cross token boundaries."""

from __future__ import annotations

from pathlib import Path

import tokenizers

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ."


def write_letters(folder: Path) -> None:
    """Write ``tokenizer.json``: one token per letter, decoded without anything in between."""
    vocabulary = {letter: i for i, letter in enumerate(LETTERS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="a"))
    every = tokenizers.Regex(".")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(every, behavior="isolated")
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
