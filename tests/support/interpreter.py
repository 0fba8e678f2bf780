"""Makes Triton's interpreter quick enough to run every test of an op in it.

The interpreter patches ``triton.language`` anew for each call of a device function, which takes a
millisecond or two: most of its time, for kernels as small as those of tests. Here each module is
patched once per launch. Only time depends on it: a release of Triton that is built otherwise runs
as it does without.
"""

from __future__ import annotations

import os


def choose_interpreter() -> None:
    """Have Triton interpret its kernels if there is no GPU, unless the environment says otherwise.

    Must run before anything imports triton.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def patch_once_per_launch() -> None:
    from triton.runtime import interpreter

    if not all(hasattr(interpreter, n) for n in ("_patch_lang", "_LangPatchScope", "GridExecutor")):
        return
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[int] = set()

    def patch_lang(function):
        module = id(function.__globals__)
        if module in patched:
            return interpreter._LangPatchScope()
        patched.add(module)
        return patch(function)

    def launch_afresh(self, *args, **kwargs):
        patched.clear()
        try:
            return launch(self, *args, **kwargs)
        finally:
            patched.clear()

    interpreter._patch_lang = patch_lang
    interpreter.GridExecutor.__call__ = launch_afresh
