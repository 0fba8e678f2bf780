"""Compiles pybind11 modules that run kernels inside the emulator (csrc/simt).

Needs g++ and pybind11; neither torch nor CUDA.

    module = load_module("tests/simt/emulator_selftest.cpp")  # builds when something changed
    run_sanitized("tests/simt/emulator_selftest.cpp", "...")  # under AddressSanitizer and UBSan

A module's source names itself: ``foo.cpp`` holds ``PYBIND11_MODULE(foo, m)``. Results are kept
under ``$RDKERNELS_TEST_CACHE`` (default: ``_build`` beside this file) and checked against the
contents of every file that the compiler read and every flag it was given. ``$RDKERNELS_TEST_FLAGS``
replaces the flags of the plain build, ``-O2 -g1``.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

PROJECT_ROOT = Path(__file__).resolve().parents[2]

_FLAGS = [
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-gnu-unique",  # modules loaded together must not share the emulator's state
    "-fno-strict-aliasing",  # as nvcc
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",  # unroll
]
_PLAIN = os.environ.get("RDKERNELS_TEST_FLAGS", "-O2 -g1").split()
_SANITIZE = [
    "-O1",
    "-g1",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
]


class BuildError(RuntimeError):
    """The compiler refused; the message holds its output."""


def compiler() -> str | None:
    """The C++ compiler: ``$CXX`` or g++; None when there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def cache_dir() -> Path:
    return Path(os.environ.get("RDKERNELS_TEST_CACHE", Path(__file__).parent / "_build"))


def build_module(
    source: str | Path,
    *,
    sanitize: bool = False,
    defines: Sequence[str] = (),
    root: Path = PROJECT_ROOT,
) -> Path:
    """Builds ``source`` with the emulator and returns the path of the shared library.

    Args:
        source: the module's .cpp file, absolute or relative to ``root``.
        sanitize: build with AddressSanitizer and UBSan; loads only in ``run_sanitized``.
        defines: preprocessor definitions, ``NAME`` or ``NAME=VALUE``.
        root: the project tree to compile; a changed copy of it for mutation tests.

    Raises:
        BuildError: no compiler, or the source does not compile.
    """
    source = (root / source).resolve()
    flags = [*_FLAGS, *(_SANITIZE if sanitize else _PLAIN), *(f"-D{name}" for name in defines)]
    flags += [
        f"-I{root / 'csrc' / 'include'}",
        f"-I{root / 'csrc'}",
        f"-I{root / 'tests' / 'simt'}",
    ]
    emulator = sorted((root / "csrc" / "simt").glob("*.cpp"))
    # pybind11 and Python are system headers: their warnings are not ours.
    module_flags = [*flags, f"-isystem{_pybind11_include()}", f"-isystem{_python_include()}"]
    jobs = [(source, module_flags), *((path, flags) for path in emulator)]
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        objects = list(pool.map(lambda job: _compile(*job), jobs))
    return _link(source.stem, objects, flags)


def load_module(source: str | Path, **options: object) -> ModuleType:
    """Builds ``source`` (arguments as ``build_module``, without ``sanitize``) and imports it."""
    path = build_module(source, **options)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_sanitized(
    source: str | Path, script: str, *, timeout: float = 300, **options: object
) -> subprocess.CompletedProcess[str]:
    """Runs a Python ``script`` that imports the sanitized build of ``source`` by its stem.

    Returns the finished process. Its exit status is not 0 when a sanitizer found something, and
    then stderr says what.
    """
    path = build_module(source, sanitize=True, **options)
    # libstdc++ must be there when ASan looks for __cxa_throw, which is before the module loads.
    preload = [_library("libasan.so"), _library("libubsan.so"), _library("libstdc++.so.6")]
    search_path = [str(path.parent), str(PROJECT_ROOT), os.environ.get("PYTHONPATH", "")]
    environment = dict(
        os.environ,
        LD_PRELOAD=" ".join(preload),
        ASAN_OPTIONS="detect_leaks=0",  # the interpreter itself leaks
        PYTHONMALLOC="malloc",
        PYTHONPATH=os.pathsep.join(part for part in search_path if part),
    )
    return subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def _pybind11_include() -> str:
    import pybind11

    return pybind11.get_include()


def _python_include() -> str:
    return sysconfig.get_path("include")


def _library(name: str) -> str:
    return _run([_require_compiler(), f"-print-file-name={name}"]).strip()


def _require_compiler() -> str:
    path = compiler()
    if path is None:
        raise BuildError("no C++ compiler: g++ is not on PATH and CXX names none")
    return path


def _run(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    return result.stdout


def _digest(*parts: str | bytes) -> str:
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()[:20]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One builder at a time: pytest-xdist workers ask for the same module at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _compile(source: Path, flags: Sequence[str]) -> Path:
    """The object file of ``source``, compiled again only when a file that it reads has changed."""
    cxx = _require_compiler()
    folder = cache_dir() / _digest(cxx, str(source), *flags)
    with _locked(folder):
        manifest_path = folder / "manifest.json"
        if manifest_path.exists():
            manifest = json.loads(manifest_path.read_text())
            if manifest["digest"] == _digest_of_files(manifest["files"]):
                return Path(manifest["object"])
        output, dependencies = folder / "new.o", folder / "new.d"
        _run([cxx, *flags, "-MMD", "-MF", str(dependencies), "-c", str(source), "-o", str(output)])
        files = _read_dependencies(dependencies)
        digest = _digest_of_files(files)
        final = output.rename(folder / f"{digest}.o")
        manifest = {"files": files, "digest": digest, "object": str(final)}
        manifest_path.write_text(json.dumps(manifest, indent=1))
        return final


def _digest_of_files(files: Sequence[str]) -> str:
    contents = [Path(name).read_bytes() if Path(name).exists() else b"" for name in files]
    return _digest(*files, *contents)


def _read_dependencies(path: Path) -> list[str]:
    """The files of a makefile rule ``target: file file ...`` as g++ writes it."""
    _, _, listed = path.read_text().replace("\\\n", " ").partition(":")
    return sorted(set(listed.split()))


def _link(name: str, objects: Sequence[Path], flags: Sequence[str]) -> Path:
    cxx = _require_compiler()
    folder = cache_dir() / _digest(cxx, name, *flags, *(str(path) for path in objects))
    with _locked(folder):
        output = folder / f"{name}.so"
        if not output.exists():
            partial = folder / "new.so"
            _run([cxx, *flags, "-shared", *map(str, objects), "-o", str(partial), "-lpthread"])
            partial.rename(output)
        return output
