#!/usr/bin/env bash
# Triton 3.9.0's interpreter refuses a mask that its compiler takes: a block of bools & one bool.
#
# Versions   triton 3.9.0 (and 3.6.0 beside it), torch 2.13.0, numpy 2.3.5, CPython 3.11, Linux x86-64
# Source     run by hand on 2026-11-28; the output is below
# Expected   `(i < 3) & keep` broadcasts a scalar condition over a block, in the interpreter as in
#            compiled code
# Seen       3.6.0 interprets it; 3.9.0 compiles it to PTX for sm_90 but interprets it with an error
# So         write `(i < 3) & (keep & (i >= 0))`, a mask of one shape, if the kernel is to be
#            tested in the interpreter
#
#   3.6.0 interpreted: [0.0, 1.0, 2.0, 0.0]
#   3.9.0 interpreted: InterpreterError: ValueError('mask has unsupported dtype')
#   3.9.0 compiled: PTX for sm_90
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5
for version in 3.6.0 3.9.0; do
  "$folder/venv/bin/pip" install --quiet --no-deps --target "$folder/$version" "triton==$version"
done

cat > "$folder/mask.py" <<'PYTHON'
import os
import sys

import torch
import triton
import triton.language as tl


@triton.jit
def copy(x, y, n, N: tl.constexpr):
    i = tl.arange(0, N)
    keep = tl.program_id(0) < tl.load(n)
    tl.store(y + i, tl.load(x + i, mask=(i < 3) & keep, other=0.0))


if os.environ.get("TRITON_INTERPRET"):
    y = torch.zeros(4)
    try:
        copy[(1,)](torch.arange(4.0), y, torch.tensor([2], dtype=torch.int32), 4)
        seen = str(y.tolist())
    except Exception as error:
        seen = f"{type(error).__name__}: {error}"
    print(f"{triton.__version__} interpreted: {seen}")
else:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {"x": "*fp32", "y": "*fp32", "n": "*i32", "N": "constexpr"}
    source = ASTSource(copy, signature=signature, constexprs={"N": 4})
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    seen = "PTX for sm_90" if ".target sm_90" in ptx else "something else"
    print(f"{triton.__version__} compiled: {seen}")
expected = sys.argv[1]
assert expected in seen, f"expected {expected!r}: the finding is out of date"
PYTHON
run() { PYTHONPATH="$folder/$1" "$folder/venv/bin/python" "$folder/mask.py" "$2"; }
TRITON_INTERPRET=1 run 3.6.0 "[0.0, 1.0, 2.0, 0.0]"
TRITON_INTERPRET=1 run 3.9.0 "mask has unsupported dtype"
TRITON_DEFAULT_FP_FUSION=1 run 3.9.0 "PTX for sm_90"
