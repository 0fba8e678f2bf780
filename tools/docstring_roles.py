"""Docstrings as Markdown, for the documentation site; a griffe extension named in mkdocs.yml.

The docstrings use two things of reStructuredText that Markdown does not know: roles such as
``:func:`generate``` and simple tables. Roles become plain code, tables become code blocks.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")
_TABLE = re.compile(r"^=+( +=+)+\n(?:.*\n)*?=+(?: +=+)+\n(?:.*\n)*?=+(?: +=+)+$", re.MULTILINE)


def as_markdown(text: str) -> str:
    """``text`` with roles as code and simple tables as fenced blocks."""
    text = _ROLE.sub(r"`\1`", text)
    return _TABLE.sub(lambda table: f"```text\n{table.group(0)}\n```", text)


class DocstringRoles(griffe.Extension):
    """Rewrites every docstring as it is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
