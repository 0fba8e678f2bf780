"""Text to token ids and back, through the Hugging Face ``tokenizers`` library."""

from __future__ import annotations

from pathlib import Path

from rdkernels.errors import ArgumentError, CheckpointError


class Tokenizer:
    """A ``tokenizer.json``; adds nothing to the text (write ``<bos>`` yourself if you want it)."""

    def __init__(self, path: Path) -> None:
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path}: not a tokenizer: {error}") from None

    @property
    def vocabulary(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``.

        Raises:
            ArgumentError: a word is not in the vocabulary and the tokenizer has no unknown token.
        """
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises bare Exception
            unknown = [w for w in text.split() if self._tokenizer.token_to_id(w) is None]
            got = ", ".join(map(repr, unknown[:5])) or str(error)
            raise ArgumentError("tokenizer", "text", "words of its vocabulary", got) from None

    def decode(self, tokens: list[int], skip_special_tokens: bool = False) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def save(self, path: Path) -> None:
        self._tokenizer.save(str(path))
