"""What this installation can do here: versions, GPUs, and each provider or why it is missing.

Nothing in this module runs at import; :func:`report` is what asks the drivers.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from rdkernels.ops import OpReport

# (label, provider, device) in the order in which they are shown.
_PROVIDERS = (
    ("eager", "eager", "cpu"),
    ("native CPU", "native", "cpu"),
    ("native CUDA", "native", "cuda"),
    ("triton", "triton", "cuda"),
)


@dataclass(frozen=True)
class Provider:
    """One provider on one kind of device.

    ``available``: it serves at least one op in fp32. ``ops``: those it serves. ``reason``: why it
    serves none, or None. ``missing``: why each other op is not served.
    """

    name: str
    available: bool
    ops: list[str]
    reason: str | None = None
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Environment:
    """The answer of ``rdkernels env``.

    ``versions`` maps a component to its version or None; ``forced_backend`` is the provider that
    ``RDKERNELS_BACKEND`` forces; ``ops`` says who serves each op on one device in one dtype.
    """

    versions: dict[str, str | None]
    gpus: list[str]
    gpu_reason: str | None
    providers: list[Provider]
    native_build: dict[str, object]
    forced_backend: str | None
    ops: list[OpReport]

    def to_json(self) -> dict[str, object]:
        """Plain values, ready for ``json.dumps``."""
        return asdict(self)


def report(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Environment:
    """Look around: imports nothing optional, builds nothing, may ask the CUDA driver for GPUs.

    ``device`` and ``dtype`` are those of the answer's ``ops``.

    Raises:
        ArgumentError: no such kind of device.
    """
    from rdkernels import ops
    from rdkernels.backends import native

    gpus, gpu_reason = _gpus()
    return Environment(
        versions={
            "rdkernels": _rdkernels_version(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torch CUDA": torch.version.cuda,
            "triton": _distribution_version("triton"),
            "nvcc": _nvcc_version(),
            "platform": f"{platform.system()} {platform.machine()}",
        },
        gpus=gpus,
        gpu_reason=gpu_reason,
        providers=[_provider(*names, gpu_reason) for names in _PROVIDERS],
        native_build=dict(native.build_info()),
        forced_backend=os.environ.get("RDKERNELS_BACKEND") or None,
        ops=ops.report(device=device, dtype=dtype),
    )


def _provider(label: str, backend: str, device: str, gpu_reason: str | None) -> Provider:
    from rdkernels import ops  # noqa: F401  (importing the package defines every op)
    from rdkernels.ops._registry import OPS, reasons

    why = {op: reasons(op, device, torch.float32)[backend] for op in sorted(OPS)}
    served = [op for op, reason in why.items() if reason is None]
    missing = {op: reason for op, reason in why.items() if reason is not None}
    if not served:
        # All ops usually share one reason; if not, the first names its op.
        return Provider(label, False, [], next(iter(missing.values()), "no ops defined"))
    if device == "cuda" and gpu_reason is not None:
        return Provider(label, False, [], f"its kernels are built, but {gpu_reason}")
    return Provider(label, True, served, None, missing)


def _gpus() -> tuple[list[str], str | None]:
    """Names of the GPUs, or the reason why there are none to use."""
    if torch.version.cuda is None:
        return [], "this torch is a build without CUDA"
    try:
        if not torch.cuda.is_available():
            return [], "torch finds no usable CUDA device"
        return [_gpu_name(index) for index in range(torch.cuda.device_count())], None
    except RuntimeError as error:  # a driver that is older than the runtime, for one
        return [], f"CUDA does not start: {str(error).splitlines()[0]}"


def _gpu_name(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    memory = properties.total_memory / 2**30
    return f"{properties.name} (sm_{properties.major}{properties.minor}, {memory:.0f} GiB)"


def _rdkernels_version() -> str:
    import rdkernels

    return rdkernels.__version__


def _distribution_version(name: str) -> str | None:
    """The version of an installed distribution, without importing it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvcc_version() -> str | None:
    """The release of the CUDA compiler on CUDA_HOME or PATH, e.g. ``13.0``."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    at_home = Path(home) / "bin" / "nvcc" if home else None
    nvcc = str(at_home) if at_home and at_home.is_file() else shutil.which("nvcc")
    if nvcc is None:
        return None
    try:
        answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"release ([\d.]+)", answer.stdout)
    return found.group(1) if found else None
