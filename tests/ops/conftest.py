"""Every test of an op runs on every provider that serves it, on every device at hand.

A test module names its op (``OP``). Its tests take ``provider`` and ``device`` and may take
``dtype``; they get the combinations for which ``rdkernels.ops.reasons`` has no objection, so a new
provider is tested by the existing files from the day it registers.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from rdkernels.ops import reasons
from tests.support.checking import FLOAT_DTYPES

settings.register_profile("rdkernels", deadline=None, print_blob=True)
settings.load_profile("rdkernels")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
                    values = (provider, device, dtype)[: len(names)]
                    combinations.append(pytest.param(*values, marks=marks))
                    ids.append("-".join(names))
    names = ("provider", "device", "dtype") if with_dtype else ("provider", "device")
    metafunc.parametrize(names, combinations, ids=ids)
