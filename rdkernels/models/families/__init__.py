"""The families of checkpoints that can be read and written.

A family is one file in this folder with a :class:`Family` named ``FAMILY``: adding it adds the
family. A family that lives elsewhere registers itself by :func:`register`.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from rdkernels.errors import ArgumentError, CheckpointError
from rdkernels.models.config import ModelConfig
from rdkernels.models.families._family import ConfigKeys, Family, TensorNames

__all__ = [
    "FAMILIES",
    "ConfigKeys",
    "Family",
    "TensorNames",
    "config_from_dict",
    "config_from_file",
    "config_to_dict",
    "family_named",
    "family_of",
    "register",
]

FAMILIES: dict[str, Family] = {}  # by name


def register(family: Family) -> None:
    """Make a family known under its name and its model types.

    Raises:
        ArgumentError: another family has the name or one of the model types.
    """
    taken = {kind for other in FAMILIES.values() for kind in other.model_types}
    if family.name in FAMILIES:
        raise ArgumentError("register", "name", f"none of {', '.join(FAMILIES)}", family.name)
    if both := taken.intersection(family.model_types):
        expected = f"none of {', '.join(sorted(taken))}"
        raise ArgumentError("register", "model_types", expected, ", ".join(sorted(both)))
    FAMILIES[family.name] = family


def family_of(data: dict[str, Any], source: str = "config") -> Family:
    """The family of a ``config.json``, by its ``model_type``.

    Raises:
        CheckpointError: no family has this type.
    """
    kind = data.get("model_type")
    for family in FAMILIES.values():
        if kind in family.model_types:
            return family
    known = ", ".join(t for family in FAMILIES.values() for t in family.model_types)
    raise CheckpointError(f"{source}: model_type: expected one of {known}, got {kind!r}")


def config_from_dict(data: dict[str, Any], source: str = "config") -> ModelConfig:
    """Read the content of a ``config.json``; unknown keys and unsupported values are refused.

    Raises:
        CheckpointError: names the key, what is supported, and what was given.
    """
    return family_of(data, source).read_config(data, source)


def config_from_file(path: Path) -> ModelConfig:
    """Read ``config.json``. Raises :class:`CheckpointError` where it is absent or malformed."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; a model folder holds config.json")
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return config_from_dict(data, str(path))


def config_to_dict(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """The ``config.json`` that :func:`config_from_dict` reads back to an equal config.

    Raises:
        CheckpointError: the config's family is unknown or has no words for its style.
    """
    return family_named(config.family).write_config(config, dtype)


def family_named(name: str) -> Family:
    """Raises :class:`CheckpointError` for a name that no family has."""
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise CheckpointError(f"config: family: expected one of {known}, got {name!r}")
    return FAMILIES[name]


for _module in iter_modules(__path__):
    if not _module.name.startswith("_"):
        register(import_module(f"{__name__}.{_module.name}").FAMILY)
