#!/usr/bin/env bash
# Triton's interpreter computes with the bit patterns of bfloat16, without a word, and the cast that
# its manual recommends instead truncates.
#
# Versions: triton 3.7.1, torch 2.13.0 (CPU build), Python 3.11, x86-64. The same with triton 3.6.0
# and 3.9.0. Seen on 2026-11-28:
#
#   1 + 1 in bfloat16            1.7014118346046923e+38   (expected 2.0)
#   dot of 16 ones, bfloat16     4228120576.0             (expected 16.0)
#   dot of 16 ones, float16      16.0                     (expected 16.0)
#   1.0077 as bfloat16           1.0                      (expected 1.0078125)
#   2**-130 of bfloat16 as fp32  0.0                      (expected 7.346839692639297e-40)
#
# Under TRITON_INTERPRET=1 a bfloat16 tensor is an array of uint16, and sums and products are those of
# these integers: 0x3F80 + 0x3F80 = 0x7F00, and 16 * 0x3F80**2 = 4228120576. A kernel that is right on
# a device gives garbage here, with no error or warning. The manual lists bfloat16 among what the
# interpreter does not support, and says to cast to float32 (triton-lang.org, "Debugging Triton"); the
# products are triton-lang/triton#11584, closed as not supported, the sums #10945. But the cast from
# float32 to bfloat16 truncates, where hardware and torch round to the nearest, and the cast from
# bfloat16 to float32 is wrong for subnormal numbers.
#
# Instead: in the interpreter, widen by moving bits (uint16 -> uint32 << 16, as float32), compute in
# float32, and round by hand before the upper half is stored.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
install=("$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check)
"${install[@]}" triton==3.7.1 numpy
"${install[@]}" --retries 0 --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu

cat > "$folder/interpreted.py" <<'PYTHON'
import sys

import torch
import triton
import triton.language as tl


@triton.jit
def add(a, b, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(a + i) + tl.load(b + i))


@triton.jit
def dot(a, b, out, N: tl.constexpr):
    i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out + i, tl.dot(tl.load(a + i), tl.load(b + i)))


@triton.jit
def cast(a, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(a + i).to(out.dtype.element_ty))


def run(kernel, *inputs, dtype):
    out = torch.zeros(inputs[0].shape, dtype=dtype)
    kernel[(1,)](*inputs, out, N=len(out))
    return out.flatten()[0].item()


bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
one = torch.ones(16, dtype=bf16)
square, half = torch.ones(16, 16, dtype=bf16), torch.ones(16, 16, dtype=fp16)
above, tiny = torch.full((16,), 1.0077), torch.full((16,), 2.0**-130).to(bf16)
seen = {
    "1 + 1 in bfloat16": (run(add, one, one, dtype=bf16), 2.0),
    "dot of 16 ones, bfloat16": (run(dot, square, square, dtype=fp32), 16.0),
    "dot of 16 ones, float16": (run(dot, half, half, dtype=fp32), 16.0),
    "1.0077 as bfloat16": (run(cast, above, dtype=bf16), above.to(bf16)[0].item()),
    "2**-130 of bfloat16 as fp32": (run(cast, tiny, dtype=fp32), tiny.float()[0].item()),
}
print(f"triton {triton.__version__}, torch {torch.__version__}")
for what, (got, expected) in seen.items():
    print(f"{what:28} {got!r:24} (expected {expected!r})")

wrong = [what for what, (got, expected) in seen.items() if got != expected]
if wrong != [what for what in seen if "bfloat16" in what]:
    sys.exit(f"the behaviour has changed: wrong are now {wrong}")
PYTHON
TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/interpreted.py"
