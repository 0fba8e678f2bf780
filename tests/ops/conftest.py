"""Every test of an op runs on every provider that serves it, on every device at hand.

A test module names its op (``OP``). Its tests take ``provider`` and ``device`` and may take
``dtype``; they get the combinations for which ``rdkernels.ops.reasons`` has no objection, so a new
provider is tested by the existing files from the day it registers.

On the CPU the provider ``triton`` is Triton's interpreter, a thousand times slower than the others:
of each test a few combinations, drawn once and for all, run always, and the others are ``slow``.
"""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
import torch
from hypothesis import settings

from rdkernels.ops import reasons
from tests.support.checking import FLOAT_DTYPES
from tests.support.interpreter import patch_once_per_launch

settings.register_profile("rdkernels", deadline=None, print_blob=True)
settings.load_profile("rdkernels")

INTERPRETED = ("triton", "cpu")
QUICK_COMBINATIONS = 3  # of each test, in Triton's interpreter

if reasons("rms_norm", "cpu", torch.float32)["triton"] is None:
    patch_once_per_launch()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _interpreter_marks(test: pytest.Item) -> list[pytest.MarkDecorator]:
    if left_out := test.get_closest_marker("not_interpreted"):
        return [pytest.mark.skip(reason=left_out.args[0])]
    return [pytest.mark.slow] if test.get_closest_marker("slow_interpreted") else []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "provider" not in metafunc.fixturenames:
        return
    module = metafunc.module
    with_dtype = "dtype" in metafunc.fixturenames
    dtypes = FLOAT_DTYPES if with_dtype else FLOAT_DTYPES[:1]
    combinations, ids = [], []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for dtype in dtypes:
            for provider, reason in reasons(module.OP, device, dtype).items():
                if reason is None:
                    names = [provider, device, *([_name(dtype)] if with_dtype else [])]
                    marks = [pytest.mark.gpu] if device == "cuda" else []
                    if (provider, device) == INTERPRETED:
                        marks += _interpreter_marks(metafunc.definition)
                    values = (provider, device, dtype)[: len(names)]
                    combinations.append(pytest.param(*values, marks=marks))
                    ids.append("-".join(names))
    names = ("provider", "device", "dtype") if with_dtype else ("provider", "device")
    metafunc.parametrize(names, combinations, ids=ids)


@pytest.hookimpl(tryfirst=True)  # before pytest drops what is marked slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    interpreted = defaultdict(list)
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if (parameters.get("provider"), parameters.get("device")) == INTERPRETED:
            interpreted[item.nodeid.split("[")[0]].append(item)
    for test, combinations in interpreted.items():
        quick = min(QUICK_COMBINATIONS, len(combinations))
        chosen = random.Random(test).sample(combinations, quick)
        for item in combinations:
            if item not in chosen:
                item.add_marker(pytest.mark.slow)
