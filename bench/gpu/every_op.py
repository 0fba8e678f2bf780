"""Runs every op once on the native kernels: the program that compute-sanitizer watches.

compute-sanitizer --tool=racecheck python -m bench.gpu.every_op
"""

from __future__ import annotations

import argparse
import dataclasses
import sys

import torch

from bench.gpu.session import Session
from bench.op_cases import providers, serve, small_cases
from bench.random_models import TINY


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.every_op", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU")
    session = Session.dry() if parser.parse_args().dry_run else Session.on_gpu()
    # Sanitizers slow kernels down a hundredfold: tiny sizes, but all three element types.
    session = dataclasses.replace(session, config=TINY, context=70)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for case in small_cases(dataclasses.replace(session, dtype=dtype)):
            reasons = providers(case, session.device)
            provider = "native" if reasons["native"] is None else "eager"
            if provider == "eager" and not session.dry_run:
                continue
            serve(case, provider)(*case.copies())
            session.synchronize()
            print(f"{case.op} ({case.label}, {dtype}): ran on {provider}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
