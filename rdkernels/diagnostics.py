"""What this installation can do here: versions, GPUs, providers, who serves each op; the machine.

Importing this module asks no driver; :func:`report` and :func:`report_ops` do.
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

import torch

from rdkernels._version import __version__
from rdkernels.backends import native
from rdkernels.dtypes import name_of
from rdkernels.errors import ArgumentError
from rdkernels.ops import OPS, reasons
from rdkernels.registry import choose, refusal

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
class OpReport:
    """Who serves one op.

    Attributes:
        op, device, dtype: what was asked for, e.g. ``swiglu``, ``cpu``, ``bfloat16``.
        reasons: per provider, in order of preference, None if it can serve, else why it cannot.
        forced: the provider that an argument or ``RDKERNELS_BACKEND`` forces, or None.
        chosen: the provider that serves a call; None if the call raises.
        error: the message that the call raises, or None.
    """

    op: str
    device: str
    dtype: str
    reasons: dict[str, str | None]
    forced: str | None
    chosen: str | None
    error: str | None

    def to_json(self) -> dict[str, object]:
        """Plain values, ready for ``json.dumps``."""
        return asdict(self)


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


@dataclass(frozen=True)
class Machine:
    """What a measured number belongs to.

    Attributes:
        cpu: the processor's name, as far as the system tells it.
        cores: logical ones of the machine, of which this process may have fewer; None if unknown.
        threads: with which torch and the native kernels compute.
        instruction_set: in use by the native kernels or, without them, by torch.
        memory_bytes: of the machine; None if unknown.
        system: the operating system and its release.
        compiler: of the native kernels; None without them.
        versions: a component to its version or None, as in :class:`Environment`.
    """

    cpu: str
    cores: int | None
    threads: int
    instruction_set: str
    memory_bytes: int | None
    system: str
    compiler: str | None
    versions: dict[str, str | None]

    def to_json(self) -> dict[str, object]:
        """Plain values, ready for ``json.dumps``."""
        return asdict(self)


def machine() -> Machine:
    """This machine; asks no GPU."""
    build = native.build_info()
    return Machine(
        cpu=_cpu_name(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        instruction_set=build.get("cpu_capability") or torch.backends.cpu.get_cpu_capability(),
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.release()}",
        compiler=build.get("compiler"),
        versions=_versions(),
    )


_CPUINFO = Path("/proc/cpuinfo")


def _cpu_name() -> str:
    """The processor by name; on ARM, where Linux knows none, by the numbers of its maker."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.is_file() else []
    entries = [line.split(":", 1) for line in lines if ":" in line]
    values = {key.strip(): value.strip() for key, value in entries}
    if "model name" in values:
        return values["model name"]
    if "CPU part" in values:
        maker, part = values.get("CPU implementer", "?"), values["CPU part"]
        return f"{platform.machine()} (implementer {maker}, part {part})"
    brand = _output("sysctl", "-n", "machdep.cpu.brand_string")  # macOS
    return brand or platform.processor() or platform.machine() or "unknown"


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not POSIX, or a name that it does not know
        return None


def _output(*command: str) -> str | None:
    """What a command prints, or None where it is absent or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def report(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Environment:
    """Look around: imports nothing optional, builds nothing, may ask the CUDA driver for GPUs.

    ``device`` and ``dtype`` are those of the answer's ``ops``.

    Raises:
        ArgumentError: no such kind of device.
    """
    gpus, gpu_reason = _gpus()
    return Environment(
        versions=_versions(),
        gpus=gpus,
        gpu_reason=gpu_reason,
        providers=[_provider(*names, gpu_reason) for names in _PROVIDERS],
        native_build=dict(native.build_info()),
        forced_backend=os.environ.get("RDKERNELS_BACKEND") or None,
        ops=report_ops(device=device, dtype=dtype),
    )


def report_ops(
    op: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    backend: str | None = None,
) -> list[OpReport]:
    """For every op, or for ``op``: which provider serves a call and why the others cannot.

    This is what a call that autograd does not record would do; one that it records goes to eager.

    Args:
        op: name of one op, or None for all.
        device: of the call's tensors; an index is ignored.
        dtype: of the call's floating tensors.
        backend: force ``native``, ``triton`` or ``eager``; default ``RDKERNELS_BACKEND``.

    Raises:
        ArgumentError: there is no such op, or no such kind of device.
    """
    if op is not None and op not in OPS:
        raise ArgumentError("report_ops", "op", f"one of {', '.join(sorted(OPS))}", repr(op))
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ArgumentError("report_ops", "device", "a torch device", repr(device)) from error
    forced = backend or os.environ.get("RDKERNELS_BACKEND") or None
    return [_report_op(name, kind, dtype, forced) for name in ([op] if op else sorted(OPS))]


def _report_op(op: str, device: str, dtype: torch.dtype, forced: str | None) -> OpReport:
    key = (device, OPS[op].looked_up_by(dtype))
    error = None
    try:
        chosen = choose(op, forced, *key)
        if chosen is None:
            error = refusal(op, forced, *key)
    except ArgumentError as unknown:  # no provider of that name
        chosen, error = None, str(unknown)
    return OpReport(op, device, name_of(dtype), reasons(op, *key), forced, chosen, error)


def _provider(label: str, backend: str, device: str, gpu_reason: str | None) -> Provider:
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


def _versions() -> dict[str, str | None]:
    return {
        "rdkernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch CUDA": torch.version.cuda,
        "triton": _distribution_version("triton"),
        "nvcc": _nvcc_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


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
    found = re.search(r"release ([\d.]+)", _output(nvcc, "--version") or "")
    return found.group(1) if found else None
