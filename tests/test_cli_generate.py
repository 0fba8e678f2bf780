"""``rdkernels generate`` with every sampler and view, and ``rdkernels score``."""

import io
import json
import sys
from dataclasses import fields
from inspect import signature

import pytest
from rich.console import Console

import rdkernels as rdk
from rdkernels import cli
from rdkernels.cli import samplers
from rdkernels.cli.ui import panes, stream
from rdkernels.models.demo import load_problems
from rdkernels.runtime import OuterStep
from rdkernels.samplers import SAMPLERS
from tests.support.terminal import run_in_terminal

PROBLEM = load_problems("demo", 1)[0]
GENERATE = ("generate", "--model", "demo", "--prompt", PROBLEM.prompt)


@pytest.fixture(scope="module")
def model():
    return rdk.load_model("demo")


# --- samplers and sampling ------------------------------------------------------------------------


def test_every_field_of_a_sampler_is_an_option_with_help_and_nothing_else_is():
    own = {field.name for kind in SAMPLERS.values() for field in fields(kind)}
    texts = [set(panel) for panel in samplers.SAMPLER_HELP.values()]
    assert set().union(*texts) == own and sum(map(len, texts)) == len(own)
    assert set(samplers.SAMPLING_HELP["Sampling"]) == {f.name for f in fields(rdk.Sampling)}
    offered = signature(cli.generate).parameters
    assert all(choice.name in offered and choice.help for choice in samplers.choices())


def test_options_have_the_type_of_their_fields():
    kinds = {choice.name: choice.kind for choice in samplers.choices()}
    assert kinds["num_steps"] is kinds["slots"] is kinds["depth_limit"] is int
    assert kinds["exit_threshold"] is kinds["inner_exit_threshold"] is float
    assert kinds["full_prefill"] is bool and kinds["logit_bias"] == list[str]
    assert kinds["criterion"] is kinds["freeze_rule"] is kinds["noise_schedule"] is str


@pytest.mark.parametrize(
    ("name", "options", "sampler"),
    [
        ("diffusion", ["--criterion", "cosine"], rdk.DiffusionForcing(6, criterion="cosine")),
        (
            "diffusion-forcing",
            ["--no-full-prefill", "--noise", "0.1", "--noise-schedule", "constant"],
            rdk.DiffusionForcing(6, full_prefill=False, noise=0.1, noise_schedule="constant"),
        ),
        (
            "diffusion",
            ["--inner-exit-threshold", "0.01", "--freeze-rule", "token-stable"],
            rdk.DiffusionForcing(6, inner_exit_threshold=0.01, freeze_rule=rdk.TokenStable()),
        ),
        ("autoregressive", ["--slots", "6"], rdk.Autoregressive(6, slots=6)),
        (
            "adaptive",
            ["--criterion", "kl", "--threshold", "0.01", "--min-steps", "2"],
            rdk.AdaptiveDepth(6, "kl", 0.01, min_steps=2),
        ),
        (
            "adaptive-depth",
            ["--check-interval", "3", "--continuous-compute"],
            rdk.AdaptiveDepth(6, check_interval=3, continuous_compute=True),
        ),
        (
            "speculative",
            ["--draft-steps", "2", "--draft-length", "3"],
            rdk.SelfSpeculative(6, draft_steps=2, draft_length=3),
        ),
        ("lossless", ["--draft-depth", "2"], rdk.LosslessWavefront(6, draft_depth=2)),
    ],
)
def test_every_sampler_runs_as_in_the_library(run, model, name, options, sampler):
    status, out, err = run(
        *(*GENERATE, "--sampler", name, "--num-steps", 6, *options),
        *("--max-new-tokens", 5, "--seed", 3, "--json"),
    )
    assert status == 0, err
    found = json.loads(out)
    expected = rdk.generate(
        model, [PROBLEM.prompt], sampler=sampler, max_new_tokens=5, stop_tokens=(2,), seed=3
    )
    assert found["outputs"][0]["tokens"] == expected.tokens[0]
    assert found["outputs"][0]["depths"] == expected.stats.depths[0]
    assert SAMPLERS[found["sampler"]] is type(sampler)
    assert found["options"] == samplers.to_json(sampler)


def test_penalty_bias_and_samples_reach_the_library(run, model):
    status, out, err = run(
        *(*GENERATE, "--prompt", "<bos> Dan has 1 4 .", "--num-steps", 2, "--samples", 2),
        *("--repetition-penalty", 1.5, "--logit-bias", "9=-inf", "--logit-bias", "12=1.5"),
        *("--temperature", 1, "--max-new-tokens", 6, "--log-probs", "--json"),
    )
    assert status == 0, err
    found = json.loads(out)["outputs"]
    expected = rdk.generate(
        model,
        [PROBLEM.prompt, "<bos> Dan has 1 4 ."],
        sampler=rdk.DiffusionForcing(2),
        sampling=rdk.Sampling(
            temperature=1.0, repetition_penalty=1.5, logit_bias={9: float("-inf"), 12: 1.5}
        ),
        max_new_tokens=6,
        stop_tokens=(2,),
        samples_per_prompt=2,
        log_probs=True,
    )
    assert [o["tokens"] for o in found] == expected.tokens
    assert [o["log_probs"] for o in found] == expected.log_probs
    assert [o["finish_reason"] for o in found] == expected.finish_reasons
    assert [o["prompt"] for o in found] == [PROBLEM.prompt] * 2 + ["<bos> Dan has 1 4 ."] * 2


def test_log_probs_in_plain_output(run, model):
    options = ("--sampler", "autoregressive", "--num-steps", 2, "--max-new-tokens", 3)
    status, out, _ = run(*GENERATE, *options, "--log-probs")
    found = json.loads(run(*GENERATE, *options, "--log-probs", "--json")[1])["outputs"][0]
    listed = out.splitlines()[1]
    assert status == 0 and f"{sum(found['log_probs']):.3f}" in listed
    for token, value in zip(found["tokens"], found["log_probs"], strict=True):
        assert f"{model.tokenizer.decode([token])}({value:.2f})" in listed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sampler", "adaptive", "--exit-threshold", "0.1"], "--exit-threshold does not apply"),
        (["--sampler", "speculative", "--threshold", "0.1"], "an option of adaptive-depth"),
        (["--sampler", "lossless", "--draft-steps", "2"], "an option of self-speculative"),
        (["--draft-depth", "2"], "an option of lossless-wavefront"),
        (["--sampler", "autoregressive", "--freeze-rule", "fixed-depth"], "--freeze-rule does not"),
        (["--sampler", "lossless", "--no-continuous-compute"], "--continuous-compute does not"),
        (["--logit-bias", "9"], "TOKEN=BIAS"),
        (["--logit-bias", "x=1"], "TOKEN=BIAS"),
        (["--logit-bias", "9=much"], "TOKEN=BIAS"),
        (["--logit-bias", "64=1"], "token ids below 64"),
        (["--repetition-penalty", "0"], "repetition_penalty"),
        (["--samples", "0"], "--samples"),
        (["--stop-string", ""], "stop_strings"),
        (["--criterion", "mood"], "criterion"),
        (["--stream", "--json"], "--stream and --json do not go together"),
        (["--watch", "--stream"], "do not go together"),
        (["--stream", "--log-probs"], "--log-probs"),
        (["--pace", "1"], "--pace is an option of --watch"),
        (["--watch", "--pace", "-1"], "--pace"),
        (["--plot-kind", "depths"], "--plot-kind is an option of --plot"),
        (["--plot", "a.png", "--plot-kind", "mood"], "mood"),
    ],
)
def test_what_does_not_fit_is_refused(run, options, message):
    status, out, err = run(*GENERATE, *options)
    assert status == 2 and out == ""
    assert err.startswith("rdkernels: ") and err.count("\n") == 1 and message in err


# --- views ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [[], ["--stop-string", "= 6 8"], ["--stop-string", "nowhere"]])
def test_a_stream_adds_up_to_the_plain_output(run, stop):
    options = (*GENERATE, "--num-steps", 8, "--max-new-tokens", 30, *stop)
    plain, streamed = run(*options), run(*options, "--stream")
    assert streamed[:2] == plain[:2] and plain[0] == 0
    assert ("6 8" in plain[1].partition("<ans>")[2]) == ("= 6 8" not in stop)


def test_streams_of_several_sequences_are_numbered(run):
    options = (*GENERATE, "--samples", 2, "--num-steps", 4, "--max-new-tokens", 6)
    texts = [o["text"] for o in json.loads(run(*options, "--json")[1])["outputs"]]
    status, out, _ = run(*options, "--stream")
    assert status == 0
    for i, text in enumerate(texts):
        lines = [line[4:] for line in out.splitlines() if line.startswith(f"[{i}] ")]
        assert " ".join(lines) == text


class Printed:
    """Feeds a TextStream one token at a time and notes what it has printed by then."""

    def __init__(self, capsys, words, stop_strings=()):
        self.capsys, self.words, self.text = capsys, words, ""
        self.stream = stream.TextStream(["p"], self.decode, stop_strings)
        capsys.readouterr()

    def decode(self, tokens):
        return b"".join(self.words[token] for token in tokens).decode(errors="replace")

    def after(self, token):
        self.stream.update(rdk.Update(0, [token], []))
        self.text += self.capsys.readouterr().out
        return self.text


def test_half_a_character_and_half_a_stop_string_wait(capsys):
    printed = Printed(
        capsys, [b"a", "é".encode()[:1], "é".encode()[1:], b"EN", b"D", b"x"], ["END"]
    )
    assert [printed.after(t) for t in (0, 1, 2)] == ["a", "a", "aé"]
    assert [printed.after(t) for t in (3, 5)] == ["aé", "aéENx"]
    assert [printed.after(t) for t in (0, 3, 4)] == ["aéENxa"] * 3


def test_watching_without_a_terminal_prints_lines(run, model):
    options = (*GENERATE, "--num-steps", 8, "--max-new-tokens", 10)
    status, out, err = run(*options, "--watch")
    output = rdk.generate(
        model, [PROBLEM.prompt], sampler=rdk.DiffusionForcing(8), max_new_tokens=10, trace=True
    )
    *lines, last = out.splitlines()
    assert status == 0 and last == f"{PROBLEM.prompt} {output.texts[0]}"
    assert len(lines) == output.stats.outer_steps
    assert "tokens/s" not in err
    committed = [line[len("step   1  ") :].partition("|")[0].strip() for line in lines]
    assert " ".join(filter(None, committed)) == output.texts[0]
    # In flight: every draft with its depth.
    for line, step in zip(lines, output.trace.steps, strict=True):
        rows = zip(step.sampled[0], step.depths[0], strict=True)
        drafts = [f"{model.tokenizer.decode([t])}({n})" for t, n in rows][step.committed[0] :]
        assert line.partition("|")[2].split() == drafts or step is output.trace.steps[-1]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_can_be_watched(run, name):
    options = (*GENERATE, "--prompt", "<bos> Dan has 1 4 .", "--sampler", name, "--num-steps", 6)
    status, out, err = run(*options, "--max-new-tokens", 4, "--watch")
    assert status == 0, err
    assert "[0] " in out and "[1] " in out


def test_a_prompt_in_flight_is_not_a_draft(run):
    options = (*GENERATE, "--num-steps", 6, "--no-full-prefill", "--exit-threshold", 0)
    lines = run(*options, "--max-new-tokens", 3, "--watch")[1].splitlines()
    assert lines[0].startswith("step   1") and lines[0].count("(4)") == 1  # the first new token


def screen(width=60, height=24):
    file = io.StringIO()
    options = {"force_terminal": True, "color_system": "truecolor", "_environ": {}}
    return file, Console(file=file, width=width, height=height, **options)


WORDS = ["zero", "one", "two", "three", "four"]


def words_of(tokens):
    return " ".join(WORDS[token % 5] for token in tokens)


def test_the_screen_shows_drafts_dimmed_with_their_depths():
    file, console = screen()
    with panes.WavefrontScreen(console, [3], words_of, depth_scale=8) as view:
        view.update(rdk.Update(0, [1, 2], []))
        view.step(OuterStep([3], [[1, 2, 3]], [[2, 3, 4]], [[8, 4, 2]], [[0.0] * 3], [1]))
    line = next(line for line in file.getvalue().splitlines() if "one two" in line)
    plain, _, drafts = line.partition("two")
    assert "\x1b[" not in plain[plain.index("one") :]
    assert "three₄" in drafts and "four₂" in drafts and "two" not in drafts
    assert "\x1b[2;38;2;" in drafts  # dim, and coloured by depth
    assert "3 tokens" not in file.getvalue() and "2 tokens, 2 in flight" in file.getvalue()


def test_frames_keep_their_height_and_show_the_end_of_long_text():
    file, console = screen(width=40, height=12)
    view = panes.WavefrontScreen(console, [1, 1, 1], words_of, depth_scale=8)
    heights = set()
    for i in range(30):
        for request in range(3):
            view.update(rdk.Update(request, [i % 3] * 4, []))
        file.truncate(0), file.seek(0)
        console.print(view.frame())
        heights.add(file.getvalue().count("\n"))
    view.update(rdk.Update(0, [4], []))
    file.truncate(0), file.seek(0)
    console.print(view.frame())
    assert len(heights) == 1 and heights.pop() <= 12
    assert "four" in file.getvalue() and "and 2 more" in file.getvalue().replace("\n", " ")


def test_watching_in_a_real_terminal():
    """On a pseudo terminal: frames that are taken away again, then the plain result."""
    options = ("--num-steps", "4", "--max-new-tokens", "6", "--watch", "--pace", "0.07")
    status, text = run_in_terminal(*GENERATE, *options)
    assert status == 0, text
    assert text.count("outer step") > 1 and "in flight" in text and "₄" in text
    assert text.rpartition("outer step")[2].count("<ans>") == 1  # the plain result comes last


# --- score ----------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path):
    file = tmp_path / "pairs.jsonl"
    records = [
        {"prompt": PROBLEM.prompt, "continuation": PROBLEM.answer},
        {"prompt": [1, 31], "continuation": [21, 4]},
    ]
    file.write_text("\n\n".join(map(json.dumps, records)))
    return file, records


def test_scores_are_the_librarys(run, model, pairs):
    file, records = pairs
    options = ("--num-steps", 6, "--seed", 3, "--initial-state-scale", 0.5, "--max-rows", 50)
    status, out, err = run("score", "--model", "demo", "--pairs", file, *options, "--json")
    assert status == 0, err
    expected = rdk.score(
        model,
        *([record[name] for record in records] for name in ("prompt", "continuation")),
        num_steps=6,
        seed=3,
        initial_state_scale=0.5,
        max_rows=50,
    )
    found = json.loads(out)
    assert found["num_steps"] == 6
    for record, entry, result in zip(records, found["scores"], expected, strict=True):
        assert entry["prompt"] == record["prompt"] and entry["log_prob"] == result.log_prob
        assert entry["log_probs"] == result.log_probs and entry["greedy"] == result.greedy
        assert entry["is_greedy"] == result.is_greedy and entry["tokens"] == result.tokens


def test_the_right_answer_is_likely(run, pairs, monkeypatch):
    _, records = pairs
    wrong = {**records[0], "continuation": records[0]["continuation"].replace("6 8", "6 7")}
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(map(json.dumps, [records[0], wrong]))))
    status, out, _ = run("score", "--model", "demo", "--pairs", "-", "--slots", 1)
    right, other = out.splitlines()
    count = len(PROBLEM.answer.split())
    assert status == 0 and f"greedy   {count}/{count}" in right and PROBLEM.answer in right
    assert float(right.split()[0]) > -0.5 > -2 > float(other.split()[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "at least one pair"),
        ('{"prompt": "a", "continuation": "b"}\n{', "line 2: not JSON"),
        ('{"prompt": "a"}', "line 1: expected 'continuation'"),
        ("[1]", "line 1: expected 'prompt'"),
        ('{"prompt": [1], "continuation": []}', "continuations[0]"),
        ('{"prompt": [1], "continuation": [1.5]}', "continuations[0]"),
        ('{"prompt": [1], "continuation": "Xerxes"}', "Xerxes"),
    ],
)
def test_malformed_pairs_are_named(run, tmp_path, content, message):
    file = tmp_path / "pairs.jsonl"
    file.write_text(content)
    status, out, err = run("score", "--model", "demo", "--pairs", file)
    assert status == 2 and out == "" and err.count("\n") == 1 and message in err


def test_a_missing_file_of_pairs_is_named(run):
    status, _, err = run("score", "--model", "demo", "--pairs", "/no/file")
    assert status == 2 and "--pairs /no/file: No such file" in err
