"""The build chain: what the environment asks for, what a wheel holds, what the library links to."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rdkernels._version import __version__
from rdkernels.backends import native
from tools import cuda_toolkit, native_build
from tools.cuda_toolkit import Arch, BuildError, CudaToolkit, choose_archs

ROOT = Path(__file__).resolve().parent.parent
TOOLKIT = CudaToolkit(
    root=Path("/toolkit"),
    nvcc=Path("/toolkit/bin/nvcc"),
    cudart_static=Path("/toolkit/lib/libcudart_static.a"),
    version="12.4",
    known=frozenset({"75", "80", "86", "89", "90"}),
)
VARIABLES = (
    "RDKERNELS_SKIP_NATIVE RDKERNELS_SKIP_CUDA RDKERNELS_FORCE_CUDA TORCH_CUDA_ARCH_LIST MAX_JOBS "
    "CXX CXXFLAGS LDFLAGS CUDA_HOME CUDA_PATH"
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in VARIABLES.split():
        monkeypatch.delenv(name, raising=False)


# What the environment asks for


def test_default_archs_are_those_that_nvcc_knows():
    archs = [str(arch) for arch in choose_archs("", TOOLKIT)]
    assert archs == ["sm_80", "sm_86", "sm_89", "sm_90a", "compute_90"]


def test_arch_list_is_honoured():
    archs = choose_archs("8.0;9.0a+PTX 8.6", TOOLKIT)
    assert archs == [Arch("80"), Arch("90a", ptx=True), Arch("86")]
    assert archs[1].nvcc_flags() == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]


@pytest.mark.parametrize("item", ("Hopper", "90", "9.0b", "10.0"))
def test_unknown_archs_are_refused_by_name(item):
    with pytest.raises(BuildError, match=re.escape(item)):
        choose_archs(f"8.0;{item}", TOOLKIT)


@pytest.mark.parametrize(("name", "value"), [("RDKERNELS_SKIP_CUDA", "yes"), ("MAX_JOBS", "0")])
def test_bad_values_are_refused_by_name(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(BuildError, match=f"{name}: expected .*'{value}'"):
        native_build.Settings()


def test_max_jobs_and_its_default(monkeypatch):
    assert 1 <= native_build.Settings().jobs <= len(os.sched_getaffinity(0))
    monkeypatch.setenv("MAX_JOBS", "7")
    assert native_build.Settings().jobs == 7


def test_force_contradicts_skip(monkeypatch):
    monkeypatch.setenv("RDKERNELS_FORCE_CUDA", "1")
    monkeypatch.setenv("RDKERNELS_SKIP_CUDA", "1")
    with pytest.raises(BuildError, match="contradicts"):
        native_build.Settings()


def test_no_compiler_names_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"no C\+\+ compiler.*RDKERNELS_SKIP_NATIVE=1"):
        native_build.find_compiler()


def test_an_incomplete_toolkit_is_not_one(monkeypatch, tmp_path):
    """CUDA_HOME is taken at its word; force fails where the default falls back, both saying why."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    said = []
    assert native_build._toolkit(native_build.Settings(), said.append) is None
    assert "no include/cuda_runtime.h" in said[0]
    monkeypatch.setenv("RDKERNELS_FORCE_CUDA", "1")
    with pytest.raises(BuildError, match=r"RDKERNELS_FORCE_CUDA=1, but .*cuda_runtime\.h"):
        native_build._toolkit(native_build.Settings(), said.append)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_toolkit_behind_a_wrapper_script(monkeypatch, tmp_path):
    wrapper = tmp_path / "nvcc"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("nvcc")} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    toolkit = cuda_toolkit.find_toolkit()
    assert toolkit.cudart_static.exists() and toolkit.root not in wrapper.parents
    assert toolkit.knows("80") and not toolkit.knows("10")


def test_a_stale_object_is_noticed(monkeypatch, tmp_path):
    monkeypatch.setattr(native_build, "CSRC", tmp_path)
    monkeypatch.setattr(native_build, "ROOT", tmp_path)
    monkeypatch.setattr(native_build, "OBJECTS", tmp_path / "objects")
    header, source = tmp_path / "a.h", tmp_path / "a.cpp"
    header.write_text("#define VALUE 1\n")
    source.write_text('#include "a.h"\nint value() { return VALUE; }\n')
    unit = native_build.Unit(source, native_build.find_compiler(), "cpu")
    assert not unit.is_current()
    unit.build()
    assert unit.is_current()
    later = unit.object.stat().st_mtime + 10
    os.utime(header, (later, later))
    assert not unit.is_current()
    unit.build()
    os.utime(unit.object, (later + 10, later + 10))
    assert unit.is_current()
    other_flags = native_build.Unit(source, [*unit.compile, "-O1"], "cpu")
    assert not other_flags.is_current()


# What the library links to


@pytest.mark.skipif(native.load_error() is not None, reason=f"rdkernels._C: {native.load_error()}")
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs binutils")
def test_only_stable_symbols():
    """No C++ symbol of torch, no other library of torch or Python, nothing of ours exported."""
    library = native._extension.__file__
    assert library.endswith("_C.abi3.so")
    undefined = _symbols(library, "--undefined-only")
    foreign = [s for s in undefined if re.match(r"(c10|at|torch|caffe2)::", s)]
    assert not foreign
    of_torch = [s for s in undefined if re.match(r"(aoti_)?torch_", s)]
    assert "torch_call_dispatcher" in of_torch
    assert "aoti_torch_get_current_cuda_stream" not in of_torch  # would not load in CPU torch
    of_python = {s for s in undefined if s.startswith(("Py", "_Py"))}
    assert of_python == {"PyModule_Create2", "PyModule_AddStringConstant"}
    assert not [s for s in undefined if s.startswith(("cuda", "cu"))]  # the runtime is linked in
    exported = _symbols(library, "--defined-only")
    assert "PyInit__C" in exported and not [s for s in exported if s.startswith("rdk")]


def _symbols(library: str, which: str) -> list[str]:
    command = ["nm", "-D", "-C", which, library]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [re.split(r" [A-Za-z] ", line, maxsplit=1)[1].split("@")[0] for line in lines]


# What a wheel holds


def build_wheel(folder: Path, **environment: str) -> Path:
    """Object files are shared with other builds; setuptools' staging folders must not be."""
    staging = folder / "staging"
    staging.mkdir()
    config = folder / "staging.cfg"
    config.write_text(f"[build]\nbuild_base = {staging}\n[egg_info]\negg_base = {staging}\n")
    environment["DIST_EXTRA_CONFIG"] = str(config)
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-q"]
    result = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(ROOT)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.slow
def test_wheel_is_abi3_and_complete(tmp_path):
    wheel = build_wheel(tmp_path, RDKERNELS_SKIP_CUDA="1")
    assert wheel.name.startswith(f"rdkernels-{__version__}-cp310-abi3-linux_")
    names = zipfile.ZipFile(wheel).namelist()
    assert "rdkernels/_C.abi3.so" in names and "rdkernels/py.typed" in names
    assert any(n.startswith("rdkernels/models/demo/") and n.endswith(".safetensors") for n in names)
    assert not [n for n in names if n.startswith(("tests/", "tools/", "csrc/", "bench/"))]
    assert [n for n in names if n.endswith("licenses/LICENSE")]


@pytest.mark.slow
def test_pure_python_wheel_works_without_compiler(tmp_path):
    wheel = build_wheel(tmp_path, RDKERNELS_SKIP_NATIVE="1", CXX="/nonexistent")
    assert wheel.name == f"rdkernels-{__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert not [n for n in names if n.endswith(".so")]
    script = (
        # An editable install of this tree would lend the wheel its extension.
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'Editable' not in repr(f)]; "
        "import torch, rdkernels; from rdkernels.backends import native; "
        "assert 'not built' in native.load_error(); "
        "print(rdkernels.__file__, rdkernels.ops.rms_norm(torch.ones(1, 2), torch.ones(2)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(wheel)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert str(wheel) in result.stdout


# The kernels without torch


class RmsNormParams(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "out")),
        *((name, ctypes.c_int64) for name in ("rows", "width", "x_stride", "out_stride")),
        ("eps", ctypes.c_float),
    )


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_cmake_compiles_for_the_same_architectures(tmp_path):
    configure = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), "-DRDKERNELS_CUDA=ON"]
    done = subprocess.run(configure, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = re.search(r"rdkernels: CUDA kernels for (\S+)", done.stdout).group(1)
    archs = choose_archs("", cuda_toolkit.find_toolkit())
    kinds = [(arch, "real" if arch.machine_code else "virtual") for arch in archs]
    assert told.split(";") == [f"{arch.number}-{kind}" for arch, kind in kinds]


def test_public_headers_stand_alone(tmp_path):
    """Each compiles by itself, and none needs what lies in kernels/, which is not installed."""
    include = ROOT / "csrc" / "include"
    public = sorted((include / "rdkernels").glob("*.h"))
    for header in public:
        shutil.copy(header, tmp_path)
    (tmp_path / "rdkernels").symlink_to(tmp_path)
    unit = "".join(f'#include "rdkernels/{header.name}"\n' for header in public)
    for source in (unit, *(f'#include "rdkernels/{header.name}"\n' for header in public)):
        command = [*native_build.find_compiler(), "-std=c++20", "-fsyntax-only", "-Wall", "-Werror"]
        command += ["-I", str(tmp_path), "-x", "c++", "-"]
        done = subprocess.run(command, input=source, capture_output=True, text=True)
        assert done.returncode == 0, source + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
def test_cmake_builds_the_kernels_without_torch():
    folder = ROOT / "build" / "cmake_test"
    options = ["-DBUILD_SHARED_LIBS=ON", "-DRDKERNELS_CUDA=OFF"]
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(folder), *options],
        ["cmake", "--build", str(folder), "--parallel", "2"],
    ):
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    library = ctypes.CDLL(str(folder / "librdkernels_cpu.so"))
    x, weight, out = np.float32([[3.0, 4.0]]), np.float32([1.0, 2.0]), np.zeros((1, 2), np.float32)
    pointers = (array.ctypes.data for array in (x, weight, out))
    params = RmsNormParams(*pointers, 1, 2, 2, 2, 0.0)
    assert library.rdk_rms_norm_cpu(ctypes.byref(params), 0, None) == 0
    np.testing.assert_allclose(out, x / np.sqrt(12.5) * weight, rtol=1e-6)
    assert library.rdk_rms_norm_cpu(ctypes.byref(params), 99, None) == -1  # unknown dtype
