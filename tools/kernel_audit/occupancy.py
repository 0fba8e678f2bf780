"""How many blocks of a kernel fit a streaming multiprocessor (SM).

The arithmetic of CUDA's occupancy calculator, with the limits of the CUDA C++ Programming Guide,
appendix "Compute Capabilities", table "Technical Specifications per Compute Capability".
"""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
REGISTERS_PER_SM = 65536
SUB_PARTITIONS = 4  # each has a quarter of the registers; a warp's are in one of them
REGISTER_UNIT = 256  # registers are given to a warp in multiples of this
SHARED_UNIT = 128  # shared memory is given to a block in multiples of this,
SHARED_RESERVED = 1024  # after what the system keeps per block (compute capability 8.0 and later)


@dataclass(frozen=True)
class SmLimits:
    """What one SM has: threads, blocks, bytes of shared memory in all."""

    threads: int
    blocks: int
    shared: int

    @property
    def shared_per_block(self) -> int:
        return self.shared - SHARED_RESERVED


LIMITS = {
    "80": SmLimits(threads=2048, blocks=32, shared=164 * 1024),
    "86": SmLimits(threads=1536, blocks=16, shared=100 * 1024),
    "89": SmLimits(threads=1536, blocks=24, shared=100 * 1024),
    "90": SmLimits(threads=2048, blocks=32, shared=228 * 1024),
    "100": SmLimits(threads=2048, blocks=32, shared=228 * 1024),
}


def limits(arch: str) -> SmLimits:
    """Of ``"90a"`` or ``"sm_90a"``."""
    return LIMITS[arch.removeprefix("sm_").rstrip("af")]


def blocks_per_sm(arch: str, threads: int, registers: int, shared: int) -> int:
    """Blocks of ``threads`` that run on one SM at the same time; 0: not even one fits.

    Args:
        arch: ``"90a"`` or ``"sm_90a"``.
        threads: per block.
        registers: per thread.
        shared: bytes per block, static and dynamic.
    """
    sm = limits(arch)
    if shared > sm.shared_per_block:
        return 0
    warps = -(-threads // WARP)
    registers_per_warp = _round_up(registers * WARP, REGISTER_UNIT)
    warps_by_registers = REGISTERS_PER_SM // SUB_PARTITIONS // registers_per_warp * SUB_PARTITIONS
    return min(
        sm.blocks,
        sm.threads // (warps * WARP),
        warps_by_registers // _round_up(warps, SUB_PARTITIONS),
        sm.shared // _round_up(shared + SHARED_RESERVED, SHARED_UNIT),
    )


def occupancy(arch: str, threads: int, blocks: int) -> float:
    """Share of the SM's warps that ``blocks`` blocks fill."""
    warps = -(-threads // WARP)
    return blocks * warps / (limits(arch).threads // WARP)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
