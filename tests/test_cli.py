"""The command line: results on stdout, one line on stderr for bad input, never a traceback."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import rdkernels
from rdkernels.cli.ui.panes import LiveObserver
from rdkernels.evaluation import compare
from rdkernels.models.demo import demo_path, load_problems
from rdkernels.runtime import OuterStep
from rdkernels.samplers import Autoregressive, DiffusionForcing
from tests.support.terminal import run_in_terminal

PROMPT = load_problems("demo", 1)[0].prompt


@pytest.fixture(scope="module")
def model():
    return rdkernels.load_model("demo")


# --- demo -----------------------------------------------------------------------------------------


def test_demo_json_is_one_object_with_the_rows(run):
    status, out, err = run("demo", "--problems", 2, "--num-steps", 4, "--json")
    assert status == 0 and err == ""
    found = json.loads(out)
    assert out.count("\n") == 1 and found["model"] == "demo"
    first, second = found["rows"]
    assert (first["sampler"], second["sampler"]) == ("autoregressive", "diffusion-forcing")
    for row in (first, second):
        assert row["problems"] == 2
        assert 0 <= row["accuracy"] <= row["value_accuracy"] <= 1
        assert row["tokens_per_second"] == pytest.approx(
            row["generated_tokens"] / row["decode_seconds"]
        )
    assert first["speedup"] == first["iterations_ratio"] == 1
    # One token comes from the prefill; each of the others takes num_steps iterations.
    expected = 4 * (first["generated_tokens"] - 2) / first["generated_tokens"]
    assert first["core_iterations_per_token"] == pytest.approx(expected)


def test_demo_really_answers(run):
    """The trained model at the sampler's defaults: right answers, far fewer iterations."""
    _, out, _ = run("demo", "--problems", 4, "--num-steps", 8, "--batch-size", 4, "--json")
    baseline, diffusion = json.loads(out)["rows"]
    assert baseline["accuracy"] >= 0.75 and diffusion["accuracy"] >= 0.75
    assert diffusion["iterations_ratio"] > 1.5


def test_demo_on_the_other_model_and_a_table(run):
    status, out, _ = run("demo", "--model", "demo-automaton", "--problems", 1, "--num-steps", 8)
    assert status == 0
    assert "autoregressive r=8" in out and "diffusion forcing r'=4" in out


def test_demo_on_a_folder_of_ones_own(run, tmp_path):
    for file in demo_path("demo").iterdir():
        (tmp_path / file.name).symlink_to(file)
    problems = json.loads((demo_path("demo") / "problems.json").read_text())[5:6]
    (tmp_path / "problems.json").unlink()
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    status, out, _ = run("demo", "--model", tmp_path, "--num-steps", 2, "--json")
    assert status == 0 and json.loads(out)["rows"][0]["problems"] == 1


# --- live view ------------------------------------------------------------------------------------


def test_live_view_shows_commits_plain_and_rows_coloured():
    screen = io.StringIO()
    console = Console(
        file=screen, width=100, force_terminal=True, color_system="truecolor", _environ={}
    )
    entrants = [
        compare.Contender("autoregressive", Autoregressive(8)),
        compare.Contender("diffusion-forcing", DiffusionForcing(8)),
    ]
    words = ["zero", "one", "two", "three", "four"]
    problem = load_problems("demo", 1)
    with LiveObserver(console, entrants, lambda ids: words[ids[0]], total=1) as view:
        view._drawn = -1e9  # the next step is due for a frame
        view.begin(entrants[0], problem)
        view.end(entrants[0], [False], [[0]])
        view.begin(entrants[1], problem)
        view._drawn = -1e9
        screen.truncate(0)
        view.step(OuterStep([9], [[1, 2]], [[2, 3]], [[8, 4]], [[0.0, 1.0]], [1]))
        frame = screen.getvalue()
        view.end(entrants[1], [True], [[1, 2, 4]])
    shown = next(line for line in frame.splitlines() if "one two" in line)
    assert "three" in shown and "\x1b[1;38;2;" in shown.partition("one two")[2]
    assert "\x1b[" not in shown[shown.index("one") : shown.index("two") + 3]
    last = screen.getvalue()[len(frame) :]
    assert "four" in last and "right" in last and "wrong" in last and "1/1 right" in last


def test_live_view_in_a_real_terminal():
    """On a pseudo terminal: frames, then the table, status 0."""
    status, text = run_in_terminal("demo", "--problems", "1", "--num-steps", "2", columns=120)
    assert status == 0, text
    assert "problem 1/1" in text and "in flight" in text and "1 held-out problems" in text


# --- generate -------------------------------------------------------------------------------------


def test_generate_json_matches_the_library(run, model):
    status, out, _ = run(
        *("generate", "--model", "demo", "--prompt", PROMPT, "--prompt", "<bos> Dan has 1 4 ."),
        *("--num-steps", 4, "--inner-recurrence", 2, "--exit-threshold", 0.1, "--momentum", 0),
        *("--max-new-tokens", 7, "--seed", 3, "--temperature", 0.7, "--top-k", 5, "--json"),
    )
    assert status == 0
    found = json.loads(out)
    expected = rdkernels.generate(
        model,
        [PROMPT, "<bos> Dan has 1 4 ."],
        sampler=DiffusionForcing(num_steps=4, inner_recurrence=2, exit_threshold=0.1, momentum=0.0),
        sampling=rdkernels.Sampling(temperature=0.7, top_k=5),
        max_new_tokens=7,
        stop_tokens=(2,),
        seed=3,
    )
    assert [o["tokens"] for o in found["outputs"]] == expected.tokens
    assert [o["text"] for o in found["outputs"]] == expected.texts
    assert found["core_iterations"] == expected.stats.core_iterations
    assert found["options"]["momentum"] == 0 and found["options"]["num_steps"] == 4


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (["--noise", 0.5], "noise", 0.5),
        (["--headway", 2], "headway", 2),
        (["--max-wavefront", 3], "max_wavefront", 3),
        (["--depth-limit", 5], "depth_limit", 5),
        (["--slots", 2], "slots", 2),
        (["--initial-state-scale", 0], "initial_state_scale", 0),
        (["--freeze-rule", "last-converged"], "freeze_rule", "LastConverged"),
        (["--continuous-compute"], "continuous_compute", True),
    ],
)
def test_every_sampler_option_reaches_the_sampler(run, options, field, value):
    status, out, err = run(
        *("generate", "--model", "demo", "--prompt", PROMPT, "--num-steps", 4),
        *("--max-new-tokens", 3, "--json", *options),
    )
    assert status == 0, err
    assert json.loads(out)["options"][field] == value


def test_fixed_depth_rule_follows_num_steps(run):
    status, out, _ = run(
        *("generate", "--model", "demo", "--prompt", PROMPT, "--num-steps", 4),
        *("--inner-recurrence", 2, "--freeze-rule", "fixed-depth", "--max-new-tokens", 4, "--json"),
    )
    assert status == 0 and json.loads(out)["outputs"][0]["depths"] == [4, 4, 4, 4]


def test_stop_tokens_default_to_the_models_and_can_be_set(run):
    base = ("generate", "--model", "demo", "--sampler", "autoregressive", "--num-steps", 8)
    base += ("--prompt", PROMPT, "--json")
    tokens = json.loads(run(*base)[1])["outputs"][0]["tokens"]
    assert tokens[-1] == 2 and 2 not in tokens[:-1]
    stopped = json.loads(run(*base, "--stop-token", tokens[1])[1])["outputs"][0]["tokens"]
    assert stopped == tokens[:2]


def test_prompt_file_and_plain_output(run, tmp_path, monkeypatch):
    file = tmp_path / "prompts.txt"
    file.write_text(f"{PROMPT}\n\n<bos> Dan has 1 4 .\n")
    options = ("--model", "demo", "--num-steps", 2, "--max-new-tokens", 3)
    status, out, err = run("generate", *options, "--prompt-file", file)
    assert status == 0 and out.count("<bos>") == 2 and "6 tokens" in err
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    status, out, _ = run("generate", *options, "--prompt-file", "-")
    assert status == 0 and out.startswith(PROMPT)


def test_generate_plots(run, tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    picture = tmp_path / "wavefront.png"
    status, _, err = run(
        *("generate", "--model", "demo", "--prompt", PROMPT, "--num-steps", 4),
        *("--max-new-tokens", 6, "--plot", picture),
    )
    assert status == 0, err
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_model_without_tokenizer_takes_ids(run, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(demo_path("demo") / name)
    options = ("--model", tmp_path, "--num-steps", 2, "--max-new-tokens", 2)
    status, out, _ = run("generate", *options, "--prompt", "1 31 21", "--json")
    assert status == 0
    answer = json.loads(out)["outputs"][0]
    assert answer["text"] is None and len(answer["tokens"]) == 2
    status, _, err = run("generate", *options, "--prompt", "Dan has")
    assert status == 2 and "no tokenizer" in err and err.count("\n") == 1


# --- env ------------------------------------------------------------------------------------------


def test_env(run):
    status, out, _ = run("env", "--json")
    found = json.loads(out)
    assert status == 0 and found["versions"]["torch"] == torch.__version__
    status, out, _ = run("env")
    assert status == 0 and "native CPU" in out and rdkernels.__version__ in out
    status, out, _ = run("env", "--ops", "--device", "cuda", "--dtype", "float16")
    assert status == 0 and "ops on cuda in float16" in out and "recurrent_attention" in out


# --- bad input ------------------------------------------------------------------------------------

GENERATE = ("generate", "--model", "demo", "--prompt", PROMPT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "nonsense"),
        (["demo", "--nonsense"], "--nonsense"),
        (["demo", "--problems", "0"], "--problems"),
        (["demo", "--problems", "many"], "--problems"),
        (["demo", "--model", "/nowhere"], "/nowhere"),
        (["demo", "--seed", "-1"], "seed"),
        (["demo", "--device", "abacus"], "abacus"),
        (["demo", "--dtype", "float7"], "float7"),
        (["generate", "--prompt", "x"], "--model"),
        (["generate", "--model", "demo"], "no prompt"),
        (["generate", "--model", "demo", "--prompt", ""], "at least one token"),
        (["generate", "--model", "demo", "--prompt", "<bos> Xerxes has 1 ."], "'Xerxes'"),
        (["generate", "--model", "demo", "--prompt-file", "/no/file"], "/no/file"),
        (["generate", "--model", "demos", "--prompt", "x"], "demos"),
        ([*GENERATE, "--sampler", "oracle"], "oracle"),
        ([*GENERATE, "--sampler", "autoregressive", "--headway", "2"], "--headway does not apply"),
        ([*GENERATE, "--freeze-rule", "never"], "never"),
        ([*GENERATE, "--num-steps", "0"], "num_steps"),
        ([*GENERATE, "--momentum", "1"], "momentum"),
        ([*GENERATE, "--top-p", "2"], "top_p"),
        ([*GENERATE, "--stop-token", "64"], "stop_tokens"),
        ([*GENERATE, "--plot", "/nowhere/a.png"], "/nowhere"),
        ([*GENERATE, "--plot", "a.docx"], "a.docx"),
        (["env", "--ops", "--device", "abacus"], "'abacus'"),
        (["env", "--ops", "--dtype", "int32"], "int32"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, arguments, message):
    status, out, err = run(*arguments)
    assert status == 2 and out == ""
    assert err.startswith("rdkernels: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_says_so(run):
    status, _, err = run("demo", "--device", "cuda")
    assert status == 2 and "no usable CUDA device" in err


def test_malformed_stop_tokens_are_named(run, tmp_path):
    for file in demo_path("demo").iterdir():
        if file.name != "generation_config.json":
            (tmp_path / file.name).symlink_to(file)
    options = ("generate", "--model", tmp_path, "--prompt", PROMPT, "--num-steps", 1)
    options += ("--max-new-tokens", 2)
    for content in ("[]", "{", '{"eos_token_id": "x"}'):
        (tmp_path / "generation_config.json").write_text(content)
        status, _, err = run(*options)
        assert status == 2 and "generation_config.json" in err, content
    (tmp_path / "generation_config.json").write_text("{}")
    assert run(*options)[0] == 0


def test_module_entry_point_in_a_fresh_process(tmp_path):
    command = [sys.executable, "-m", "rdkernels", "generate", "--model", "nowhere", "--prompt", "x"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 2 and done.stdout == ""
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    done = subprocess.run([*command[:3], "--help"], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0 and "generate" in done.stdout
