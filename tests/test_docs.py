"""The documentation holds: its code runs and means what the ops mean, and nothing lacks a page."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cases import CASES, Shape
from rdkernels.cli import main
from rdkernels.ops import OPS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = {page.stem: page for page in (DOCS / "api" / "ops").glob("*.md") if page.stem != "index"}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# The blocks of these call those of other pages: they are read last, and compared in fp32 only and
# with more room, because the roundings of several layers compound. A mistake is of the order of 1.
COMPOSED = ("transformer_blocks", "core_iterations")
OPS_AND_DTYPES = [
    (op, dtype)
    for op in sorted(PAGES)
    for dtype in (torch.float32, torch.bfloat16)
    if op not in COMPOSED or dtype == torch.float32
]
# A mistake for each page: text of its block, and what takes its place.
MISTAKES = {
    "advance_wavefront": ("int(sequence_ids[b])", "b"),
    "carry_rows": ("state[-1 - source]", "state[source]"),
    "core_iterations": ("torch.where(live.unsqueeze(1), hidden, state)", "hidden"),
    "exit_update": ("active * iterations", "iterations"),
    "inject_state": ("(1 - w) * (1 + w)", "1 - w"),
    "recurrent_attention": ("torch.arange(int(p) + 1)", "torch.arange(int(p))"),
    "residual_norm": ("residual.float() + normed_delta", "residual.float() - normed_delta"),
    "rms_norm": (".mean(dim=-1, keepdim=True) + eps", ".sum(dim=-1, keepdim=True) + eps"),
    "row_linear": ("weight.float() * scale[:, None]", "weight.float()"),
    "sample_tokens": ("[1, 1, 0]", "[1, 1, 1]"),
    "swiglu": ("functional.silu(gate) * up", "functional.silu(up) * gate"),
    "transformer_blocks": ('hidden, "norm_4")', 'hidden, "norm_2")'),
    "truncated_normal": ("range(10)", "range(9)"),
}


def equivalent(op: str) -> str:
    """The Python block under "Equivalent to" on the page of ``op``."""
    after = PAGES[op].read_text().partition("\n## Equivalent to\n")[2]
    blocks = BLOCK.findall(after)
    assert len(blocks) == 1, f"{PAGES[op]}: expected one Python block under 'Equivalent to'"
    return blocks[0]


def equivalents(changed: dict[str, str] | None = None) -> dict[str, Any]:
    """What the blocks of all pages define together; ``changed`` takes the place of some."""
    defined: dict[str, Any] = {}
    for op in [*sorted(PAGES.keys() - set(COMPOSED)), *COMPOSED]:
        source = (changed or {}).get(op) or equivalent(op)
        exec(compile(source, str(PAGES[op]), "exec"), defined)
    return defined


def copied(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(copied, value))
    return value.clone() if isinstance(value, torch.Tensor) else value


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors in arguments or results, in order, without those that stand for None."""
    if isinstance(value, (list, tuple)):
        return [tensor for element in value for tensor in tensors(element)]
    return [value] if isinstance(value, torch.Tensor) and value.numel() else []


def calls(op: str, rows: int, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Random positional arguments; also what the table of cases keeps simple."""
    found = [case.arguments for case in CASES[op](Shape.small(rows, dtype))]
    if op == "row_linear":  # its scales are all 1
        weight = torch.randint(-127, 128, (7, 40), dtype=torch.int8)
        found.append((torch.randn(rows, 40).to(dtype), weight, torch.rand(7)))
    return found


def compare(op: str, function: Any, dtype: torch.dtype, rows: int = 23) -> None:
    """``function`` returns what the eager op returns, and leaves its arguments as the op does."""
    for arguments in calls(op, rows, dtype):
        mine, eager = copied(arguments), copied(arguments)
        got, want = function(*mine), OPS[op].eager(*eager)
        room = {"rtol": 1e-4, "atol": 1e-4} if op in COMPOSED else {}
        torch.testing.assert_close(tensors(got), tensors(want), equal_nan=True, **room)
        torch.testing.assert_close(tensors(mine), tensors(eager), equal_nan=True, **room)


# The pages of the ops


def test_every_op_has_a_page():
    assert PAGES.keys() == OPS.keys() == MISTAKES.keys()


@pytest.mark.parametrize(("op", "dtype"), OPS_AND_DTYPES, ids=str)
def test_equivalent(op, dtype, seed):
    compare(op, equivalents()[op], dtype)


@pytest.mark.parametrize("op", MISTAKES)
def test_a_wrong_equivalent_is_noticed(op, seed):
    right, wrong = MISTAKES[op]
    source = equivalent(op)
    assert source.count(right) == 1
    broken = equivalents({op: source.replace(right, wrong)})
    with pytest.raises(AssertionError):
        compare(op, broken[op], torch.float32)


def test_pages_refer_to_the_public_function():
    for op, page in PAGES.items():
        assert f"\n::: rdkernels.ops.{op}.{op}\n" in page.read_text()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="griffe needs Python 3.11")
def test_docstrings_become_markdown():
    from tools.docstring_roles import as_markdown

    text = "See :func:`~rdkernels.generate`.\n\n==  ==\na   b\n==  ==\n1   2\n==  ==\n\nEnd."
    table = "```text\n==  ==\na   b\n==  ==\n1   2\n==  ==\n```"
    assert as_markdown(text) == f"See `rdkernels.generate`.\n\n{table}\n\nEnd."


# The site


def nav_pages(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    children = entry.values() if isinstance(entry, dict) else entry
    return [page for child in children for page in nav_pages(child)]


def test_nav_lists_every_page_once():
    """mkdocs --strict refuses pages outside the nav too; this does so without mkdocs."""
    listed = nav_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_the_site_fetches_nothing():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert config["theme"]["font"] is False  # else Google's
    assert "repo_url" not in config  # else a request to GitHub's API from every page
    for page in DOCS.rglob("*.md"):
        text = page.read_text()
        assert "```mermaid" not in text, f"{page}: the theme loads mermaid from a CDN"
        assert not re.search(r"!\[[^]]*\]\(https?:|<script|<img|<iframe", text), page


# Commands and code in the prose


def markdown_files() -> list[Path]:
    roots = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
    return [*roots, *sorted(DOCS.rglob("*.md"))]


@pytest.mark.parametrize("file", markdown_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_python_blocks_parse(file):
    for block in BLOCK.findall(file.read_text()):
        ast.parse(block)


def modules_named(file: Path) -> set[str]:
    """Modules of this repository that a file tells its reader to run with ``python -m``."""
    return set(re.findall(r"python -m ((?:bench|tools|tests|examples)[\w.]*)", file.read_text()))


@pytest.mark.parametrize("file", markdown_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_modules_named_exist(file):
    for module in modules_named(file):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


@pytest.mark.parametrize("name", ["README", "CONTRIBUTING", "findings/README"])
def test_links_outside_the_site_lead_somewhere(name):
    """mkdocs checks the links of its own pages."""
    file = ROOT / f"{name}.md"
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", file.read_text()):
        path, _, anchor = target.partition("#")
        assert (file.parent / path).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", (file.parent / path).read_text(), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def run_python_of(file: Path) -> None:
    """All Python blocks of a page, in order, as a reader would paste them one after the other."""
    exec(compile("\n".join(BLOCK.findall(file.read_text())), str(file), "exec"), {})


def test_readme_code_runs(capsys):
    run_python_of(ROOT / "README.md")
    *_, tens, units, end, iterations = capsys.readouterr().out.split()
    assert (tens, units, end) == ("6", "5", "<eos>")  # 14, twice that, and 37 more
    assert float(iterations) < 5


@pytest.mark.parametrize("page", ["samplers", "tuning", "api/engine"])
def test_code_of_a_page_runs(page, capsys):
    run_python_of(DOCS / f"{page}.md")
    assert capsys.readouterr().out


def readme_commands() -> list[list[str]]:
    """Every ``rdkernels`` command in the README's shell blocks."""
    shell = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    lines = "".join(shell).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("rdkernels ")]


def test_readme_commands_run(capsys):
    """With the demo model and its words where the README has Huginn, whose weights are not here."""
    commands = readme_commands()
    assert len(commands) == 2
    prompt = next(word for command in commands for word in command if word.startswith("<bos>"))
    for command in commands:
        demo = {"huginn-0125": "demo", command[command.index("--prompt") + 1]: prompt}
        with pytest.raises(SystemExit) as ended:
            main([demo.get(word, word) for word in command[1:]])
        captured = capsys.readouterr()
        assert ended.value.code == 0, captured.err
        assert "Eve = 1 4 * 2 = 2 8" in captured.out


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.M).group(1).split()
    rules = re.findall(r"^([a-z-]+):", makefile, re.M)
    assert sorted(phony) == sorted(rules), "every .PHONY target has a rule and the reverse"
    for file in markdown_files():
        for target in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", file.read_text(), re.M):
            assert (target[0] or target[1]) in rules, (file, target)


# Files that only other programs read


@pytest.mark.parametrize("name", ["ci", "wheels"])
def test_workflow(name):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())
    assert workflow[True]  # YAML reads the key "on" so
    for job in workflow["jobs"].values():
        assert job["runs-on"] and job["steps"]
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)


def test_ci_covers_every_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13", "3.14"]
    assert len(matrix["torch"]) == 2  # oldest, newest


def test_pinned_versions_agree():
    """The pre-commit hooks format with the versions that lint installs."""
    project = (ROOT / "pyproject.toml").read_text()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    pins = {
        repo["repo"].rsplit("/", 1)[1]: repo["rev"].removeprefix("v") for repo in hooks["repos"]
    }
    for hook, package in (("ruff-pre-commit", "ruff"), ("mirrors-clang-format", "clang-format")):
        assert f'"{package}=={pins[hook]}"' in project


def test_citation_matches_the_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = re.search(
        r'__version__ = "(.+)"', (ROOT / "rdkernels" / "_version.py").read_text()
    ).group(1)
    assert citation["version"] == version
    assert citation["license"] == "Apache-2.0"
    assert citation["repository-code"] in (ROOT / "pyproject.toml").read_text()


# Findings


def test_findings_are_listed_and_run_without_this_package():
    scripts = sorted((ROOT / "findings").glob("*.sh"))
    listed = re.findall(r"\]\((\w+\.sh)\)", (ROOT / "findings" / "README.md").read_text())
    assert sorted(listed) == [script.name for script in scripts]
    for script in scripts:
        text = script.read_text()
        assert "rdkernels" not in text
        assert "mktemp -d" in text and "==" in text, "a temporary folder, pinned packages"
        assert re.search(r"20\d\d-\d\d-\d\d", text), "the date on which the output was seen"
        assert subprocess.run(["bash", "-n", script]).returncode == 0
