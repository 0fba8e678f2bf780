"""The part of docs/kernels.md that is generated from kernel_resources.json."""

from __future__ import annotations

from pathlib import Path

from tools.native_build import ROOT

PAGE = ROOT / "docs" / "kernels.md"
BEGIN = "<!-- resources: written by python -m tools.kernel_audit --update -->"
END = "<!-- resources: end -->"

# The variants that serve Huginn in bf16: aligned, 5280 wide, 55 heads of 96.
HUGINN_VARIANTS = (
    "recurrent_attention_kernel<bf16, 96, 1>",
    "recurrent_attention_kernel<bf16, 96, 4>",
    "recurrent_attention_merge_kernel<bf16>",
    "plain_recurrent_attention_kernel<fp32>",
    "residual_norm_kernel<bf16, 2, true>",
    "rms_norm_kernel<bf16, 2, true>",
    "swiglu_kernel<bf16, true>",
    "inject_state_kernel<bf16, true>",
    "exit_update_kernel<bf16, 2, true>",
    "truncated_normal_kernel<bf16, true>",
    "greedy_tokens_kernel<fp32, true>",
    "sample_tokens_kernel<fp32, true>",
    "advance_wavefront_kernel<1024>",
    "carry_rows_kernel<bf16, true>",
)


def section(table: dict) -> str:
    """The generated text, markers included."""
    archs = list(table["kernels"][HUGINN_VARIANTS[0]])
    head = ["kernel", "threads", "shared", *archs]
    lines = [
        f"Compiled by nvcc {table['nvcc']}. Per architecture: registers per thread / blocks per SM",
        "/ share of the SM's warps. Shared memory is static plus dynamic, in bytes per block.",
        "",
        "| " + " | ".join(head) + " |",
        "|---|" + "---:|" * (len(head) - 1),
    ]
    for name in HUGINN_VARIANTS:
        by_arch = table["kernels"][name]
        first = by_arch[archs[0]]
        shared = first["static_shared"] + first["dynamic_shared"]
        cells = [
            f"{r['registers']} / {r['blocks_per_sm']} / {r['occupancy']:.0%}"
            for r in (by_arch[arch] for arch in archs)
        ]
        row = [f"`{name}`", str(first["threads"]), str(shared), *cells]
        lines.append("| " + " | ".join(row) + " |")
    records = [r for by_arch in table["kernels"].values() for r in by_arch.values()]
    spilled = sum(r["spill_stores"] + r["spill_loads"] + r["stack"] for r in records)
    lines += [
        "",
        f"All {len(table['kernels'])} kernel variants on all {len(archs)} architectures together",
        f"spill {spilled} bytes.",
        "",
        "Instructions in the main loop of the attention kernel, one K/V tile, per warp:",
        "",
        "| kernel | arch | HMMA | LDSM | LDGSTS.128 | barriers |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name in HUGINN_VARIANTS[:2]:
        for arch in archs:
            loop = table["kernels"][name][arch]["main_loop"]
            kinds = (loop["HMMA"], loop["LDSM"], loop["LDGSTS.128"], loop["BAR"])
            lines.append(f"| `{name}` | {arch} | " + " | ".join(map(str, kinds)) + " |")
    return "\n".join([BEGIN, *lines, END])


def current_section(page: Path = PAGE) -> str:
    """What the page holds between the markers, markers included."""
    text = page.read_text()
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def update_page(table: dict, page: Path = PAGE) -> None:
    page.write_text(page.read_text().replace(current_section(page), section(table)))
