"""Builds ``rdkernels._C``; everything declarative is in pyproject.toml.

Environment: RDKERNELS_SKIP_NATIVE=1 (pure Python), RDKERNELS_SKIP_CUDA=1 (CPU kernels only),
RDKERNELS_FORCE_CUDA=1 (fail rather than build without CUDA), TORCH_CUDA_ARCH_LIST ("8.0;9.0a+PTX"),
MAX_JOBS, CXX, CXXFLAGS, LDFLAGS, CUDA_HOME.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # build front ends run this file without its folder on the path

from tools import native_build  # noqa: E402

VERSION = re.search(
    r'__version__ = "(.+)"', (ROOT / "rdkernels" / "_version.py").read_text()
).group(1)


class BuildNative(build_ext):
    """Hands the one extension to tools/native_build.py."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        try:
            native_build.build(target, VERSION, SETTINGS, say)
        except native_build.BuildError as error:
            sys.exit(f"rdkernels: {error}")


def say(message: str) -> None:
    print(f"rdkernels: {message}", flush=True)


try:
    SETTINGS = native_build.Settings()
except native_build.BuildError as error:
    sys.exit(f"rdkernels: {error}")

if SETTINGS.skip_native:
    say("RDKERNELS_SKIP_NATIVE=1: pure Python, no native kernels")
    setup()
else:
    setup(
        ext_modules=[Extension("rdkernels._C", sources=[], py_limited_api=True)],
        cmdclass={"build_ext": BuildNative},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
