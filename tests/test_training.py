"""examples/demo_training: it learns, it saves, and rdkernels reads back the same model."""

import dataclasses
import json
import math
import random
import secrets

import pytest
import torch
from safetensors.torch import load_file

import rdkernels
from examples.demo_training import curriculum, optimizer, tasks, train
from examples.demo_training.curriculum import (
    IGNORED,
    TRAINING_TASKS,
    Automaton,
    Chained,
    Steps,
    WordProblems,
    sample_steps,
)
from examples.demo_training.model import TrainingModel
from rdkernels.models.checkpoint import default_stop_tokens
from rdkernels.models.config import ModelConfig


def tiny_config(task_name):
    return ModelConfig(
        hidden_size=32,
        num_heads=2,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=48,
        prelude_layers=1,
        core_layers=1,
        coda_layers=1,
        context_length=128,
        vocab_size=-(-len(tasks.TASK_WORDS[task_name]) // 16) * 16,
        mean_recurrence=4,
    )


def tiny_options(task_name, folder, steps):
    return train.Options(
        task=task_name, out=folder, max_steps=steps, dtype=torch.float32, compile=False
    )


@pytest.mark.parametrize("task_name", sorted(TRAINING_TASKS))
def test_loss_falls_and_the_checkpoint_gives_equal_logits(task_name, tmp_path, monkeypatch):
    monkeypatch.setattr(TRAINING_TASKS[task_name], "batch_size", 8)
    trained = []
    save = train.save
    monkeypatch.setattr(
        train, "save", lambda model, options: (trained.append(model), save(model, options))
    )
    losses = train.train(
        tiny_options(task_name, tmp_path, steps=60), tiny_config(task_name), log=lambda line: None
    )
    assert len(losses) == 60 and all(map(math.isfinite, losses))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10]), losses

    model = rdkernels.load_model(tmp_path)
    assert model.dtype == torch.float32
    prompt = tasks.held_out(task_name, 1)[0].prompt
    ids = torch.tensor([model.tokenizer.encode(prompt)])
    zero = torch.zeros(*ids.shape, model.config.hidden_size)
    with torch.no_grad():
        expected = trained[-1](ids, num_steps=3, initial_state=zero)
    logits, _ = model.forward(ids, num_steps=3, initial_state_scale=0.0)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert default_stop_tokens(tmp_path) == (tasks.EOS,)
    assert model.tokenizer.encode("<eos>") == [tasks.EOS]
    problems = json.loads((tmp_path / "problems.json").read_text())
    assert len(problems) >= 200 and problems[0]["prompt"] == prompt


def test_the_shipped_weights_fit_the_training_model():
    """The same weights give the same logits in both models, so that a demo can be trained on."""
    folder = rdkernels.models.demo.demo_path("demo")
    model = rdkernels.load_model("demo", dtype=torch.float32)
    ours = TrainingModel(model.config)
    ours.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    ids = torch.tensor([model.tokenizer.encode(tasks.held_out("word-problems", 1)[0].prompt)])
    zero = torch.zeros(*ids.shape, model.config.hidden_size)
    with torch.no_grad():
        expected = ours(ids, num_steps=4, initial_state=zero)
    logits, _ = model.forward(ids, num_steps=4, initial_state_scale=0.0)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_gradients_flow_through_the_last_iterations_only():
    torch.manual_seed(0)
    model = TrainingModel(tiny_config("automaton"))
    ids = torch.randint(0, 16, (2, 5))
    calls = []
    iterate = model.iterate
    model.iterate = lambda *a: (calls.append(torch.is_grad_enabled()), iterate(*a))[1]
    model(ids, num_steps=5, backprop_steps=2).sum().backward()
    assert calls == [False] * 3 + [True] * 2
    assert all(p.grad is not None for p in model.parameters())


def test_future_tokens_do_not_leak():
    torch.manual_seed(0)
    model = TrainingModel(tiny_config("automaton")).eval()
    ids = torch.randint(0, 16, (1, 9))
    changed = ids.clone()
    changed[0, 6:] = (changed[0, 6:] + 1) % 16
    zero = torch.zeros(1, 9, 32)
    with torch.no_grad():
        first, second = (model(x, 3, initial_state=zero) for x in (ids, changed))
    assert torch.equal(first[:, :6], second[:, :6])
    assert not torch.allclose(first[:, 6:], second[:, 6:])


def test_word_problem_rows_hold_whole_answers():
    task = WordProblems()
    words = task.words
    batch = task.batch(random.Random(3), 64, Steps(1, 1))
    assert batch.ids.shape == batch.targets.shape == (64, 80)
    for ids, targets in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True):
        text = " ".join(words[t] for t in ids if t != tasks.PAD)
        answers = " ".join(words[t] for t in targets if t != IGNORED)
        assert text.count("<bos>") == answers.count("<eos>") >= 1
        for position, target in enumerate(targets[:-1]):
            assert target in (IGNORED, ids[position + 1])


def test_automaton_targets_are_aligned_with_the_iterations():
    task = Automaton()
    task.level = 5
    seed = secrets.randbits(32)
    rows = {}
    for total in (1, 3, 5, 9):
        batch = task.batch(random.Random(seed), 16, Steps(total, 1))
        rows[total] = batch
        for ids, targets in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True):
            assert sum(t != IGNORED for t in targets) == tasks.ROW_WIDTH + 1, f"seed {seed}"
            prompt = [task.words[t] for t in ids[: 3 + tasks.ROW_WIDTH]]
            row = [int(bit) for bit in prompt[3:]]
            for _ in range(min(total, int(prompt[2][1:]))):
                row = tasks.automaton_step(row)
            answer = [task.words[t] for t in targets if t != IGNORED]
            assert answer == [*map(str, row), "<eos>"], f"seed {seed}"


def chain_batches(monkeypatch, *, warm_share, wrong_share, totals, level=16):
    """(task, batch, K per sequence) for each number of iterations in ``totals``, fresh seeds."""
    monkeypatch.setattr(Chained, "_WARM_SHARE", warm_share)
    monkeypatch.setattr(Chained, "_WRONG_SHARE", wrong_share)
    task = Chained()
    task.level = level
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for total in totals:
        batch = task.batch(rng, 16, Steps(total, 1))
        counts = [int(task.words[ids[2]][1:]) for ids in batch.ids.tolist()]
        yield task, batch, counts


def chain_rows(task, ids):
    """The rows of digits of one sequence, by the marks between them; the last one may be cut."""
    text = " ".join(task.words[token] for token in ids[3:])
    for mark in ("<ans>", *tasks.CHAIN_MARKS):
        text = text.replace(mark, "|")
    return [[int(digit) for digit in row.split()] for row in text.split("|")]


def test_chained_targets_are_aligned_with_the_iterations(monkeypatch):
    totals = (1, 3, 5, 8, 12)
    found = chain_batches(monkeypatch, warm_share=0.0, wrong_share=0.0, totals=totals)
    for total, (task, batch, counts) in zip(totals, found, strict=True):
        assert batch.warm is None
        for ids, targets, steps in zip(
            batch.ids.tolist(), batch.targets.tolist(), counts, strict=True
        ):
            expected = []
            for row, mark in zip(chain_rows(task, ids), ("", *tasks.CHAIN_MARKS), strict=False):
                expected += [*mark.split(), *map(str, tasks.chain_row(row, min(2 * total, steps)))]
            words = [task.words[target] for target in targets if target != IGNORED]
            assert words == [*expected[: len(words) - 1], "<eos>"] and len(words) == 104


def test_a_warm_start_asks_each_source_for_what_its_depth_allows(monkeypatch):
    """Right digits, some positions fresh: a fresh source has had fewer iterations."""
    monkeypatch.setattr(curriculum, "_poisson", lambda rng, rate: 1)
    seen = set()
    found = chain_batches(monkeypatch, warm_share=1.0, wrong_share=0.0, totals=(1, 4))
    for (task, batch, counts), total in zip(found, (1, 4), strict=True):
        assert torch.equal(batch.warm.ids, batch.ids)
        for b, steps in enumerate(counts):
            for source in range(3, 100):
                word = task.words[batch.ids[b, source]]
                if not word.isdigit():
                    continue
                before = task.words[batch.ids[b, source - 1]]
                left = int(before) if before.isdigit() else 0
                fresh = bool(batch.warm.fresh[b, source])
                depth = total + (0 if fresh else batch.warm.steps)
                expected = tasks.chain_row([left, int(word)], min(2 * depth, steps))[1]
                target = batch.targets[b, source + tasks.CHAIN_WIDTH]
                assert task.words[target] == str(expected), (b, source)
                seen.add((fresh, 2 * depth < steps))
    assert len(seen) == 4, seen


def test_a_source_that_was_wrong_is_given_time_to_begin_again(monkeypatch):
    totals = (2, 14) * 3
    found = chain_batches(monkeypatch, warm_share=1.0, wrong_share=1.0, totals=totals)
    for total, (_, batch, counts) in zip(totals, found, strict=True):
        wrong = batch.warm.ids != batch.ids
        assert wrong.any() and not wrong[:, : 4 + tasks.CHAIN_WIDTH].any()
        ignored = batch.targets[:, 3 + tasks.CHAIN_WIDTH :] == IGNORED
        assert ignored.any() == (total == 2)
        for b, source in wrong.nonzero().tolist():
            target = source + tasks.CHAIN_WIDTH
            if target < batch.targets.shape[1] and not batch.warm.fresh[b, source]:
                late = total < (counts[b] + 1) // 2 + 2
                assert (batch.targets[b, target].item() == IGNORED) == late
        if total == 14:  # time enough for all: the targets are the answers
            answered = batch.targets[:, :-1] != IGNORED
            assert torch.equal(batch.targets[:, :-1][answered], batch.ids[:, 1:][answered])


def test_warm_states_are_fresh_where_asked_and_iterated_elsewhere():
    torch.manual_seed(0)
    model = TrainingModel(tiny_config("chained"))
    ids = torch.randint(0, 16, (2, 7))
    fresh = torch.zeros(2, 7, dtype=torch.bool)
    fresh[0, 3:] = True
    first = torch.randn(2, 7, 32)
    second = torch.randn(2, 7, 32)
    draws = iter((first, second))
    model.initial_state = lambda embedding: next(draws)
    state = model.warm_state(ids, 2, fresh)
    assert not state.requires_grad
    embedding = model.embed(ids)
    expected = model.iterate(model.iterate(first, embedding), embedding)
    assert torch.equal(state[0, 3:], second[0, 3:])
    assert torch.equal(state[~fresh], expected[~fresh])


def test_training_starts_from_a_folder(tmp_path):
    options = tiny_options("chained", tmp_path / "first", steps=2)
    train.train(options, tiny_config("chained"), log=lambda line: None)
    lines = []
    rate_zero = {"muon_rate": 0.0, "adamw_rate": 0.0}
    again = dataclasses.replace(
        options, out=tmp_path / "second", start=options.out, max_steps=1, **rate_zero
    )
    train.train(again, tiny_config("chained"), log=lines.append)
    first, second = (load_file(folder / "model.safetensors") for folder in (options.out, again.out))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", [Automaton, Chained])
def test_curriculum_rises_when_the_longest_are_right(kind):
    task = kind()
    rng = random.Random(0)
    for _ in range(400):
        steps = Steps(12, 1)
        batch = task.batch(rng, 8, steps)
        right = torch.nn.functional.one_hot(batch.targets.clamp(min=0), len(task.words)).float()
        task.observe(right, batch, steps)
    assert task.level == task.last_level > 1
    task = kind()
    for _ in range(200):
        batch = task.batch(rng, 8, steps)
        task.observe(torch.randn(*batch.ids.shape, len(task.words)), batch, steps)
    assert task.level == 1


def test_training_never_sees_a_held_out_problem(monkeypatch):
    """Give the generator the held-out seeds: what it draws first must be skipped."""
    task = Automaton()
    first = tasks.held_out("automaton", 1)[0].prompt
    batch = task.batch(random.Random("held-out automaton 0"), 1, Steps(4, 1))
    drawn = " ".join(task.words[t] for t in batch.ids[0].tolist()[: len(first.split())])
    assert drawn != first

    rng = random.Random("held-out word-problems 0")
    monkeypatch.setattr(rng, "choices", lambda *a, **k: [(4,)])
    batch = WordProblems().batch(rng, 1, Steps(4, 1))
    text = " ".join(tasks.WORD_PROBLEM_WORDS[t] for t in batch.ids[0].tolist())
    assert tasks.held_out("word-problems", 1)[0].prompt not in text


def test_sampled_steps_have_the_mean_asked_for():
    rng = random.Random(1)
    drawn = [sample_steps(rng, 8, 4) for _ in range(4000)]
    mean = sum(steps.total for steps in drawn) / len(drawn)
    assert abs(mean - 9) < 0.4  # 1 + Poisson(8)
    assert all(1 <= steps.backprop <= min(4, steps.total) for steps in drawn)


def test_orthogonalise_evens_the_singular_values():
    torch.manual_seed(secrets.randbits(16))
    for shape in ((48, 16), (16, 48), (32, 32)):
        values = torch.linalg.svdvals(optimizer.orthogonalise(torch.randn(shape)))
        assert values.max() < 1.3, shape
        assert values.median() > 0.6, shape


def test_schedule_warms_up_holds_and_decays():
    assert train.schedule(0.0, 0, decay=0.5) == pytest.approx(1 / 50)
    assert train.schedule(0.3, 500, decay=0.5) == 1.0
    assert train.schedule(0.75, 500, decay=0.5) == pytest.approx(0.5)
    assert train.schedule(1.0, 500, decay=0.5) == pytest.approx(0.02)


def test_a_checkpoint_is_replaced_only_when_complete(tmp_path, monkeypatch):
    options = tiny_options("automaton", tmp_path, steps=1)
    train.save(TrainingModel(tiny_config("automaton")), options)
    before = (tmp_path / "model.safetensors").read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(train, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        train.save(TrainingModel(tiny_config("automaton")), options)
    assert (tmp_path / "model.safetensors").read_bytes() == before
