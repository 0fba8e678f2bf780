"""The shipped demo folders: tokenizers, held-out problems, scoring, generators."""

import json
import random

import pytest
from tokenizers import Tokenizer

from examples.demo_training import tasks
from examples.demo_training.make_problems import write_problems
from rdkernels.errors import RdkernelsError
from rdkernels.models import demo

NAMES = sorted(demo.DEMO_MODELS)
TASKS = {"demo": "word-problems", "demo-automaton": "automaton", "demo-chained": "chained"}


def tokenizer_of(name):
    return Tokenizer.from_file(str(demo.demo_path(name) / "tokenizer.json"))


@pytest.mark.parametrize("name", NAMES)
def test_folder_is_complete_and_small(name):
    folder = demo.demo_path(name)
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "problems.json"} <= files.keys()
    assert sum(files.values()) < 5 << 20


@pytest.mark.parametrize("name", NAMES)
def test_text_survives_the_tokenizer(name):
    tokenizer = tokenizer_of(name)
    for problem in demo.load_problems(name):
        text = f"{problem.prompt} {problem.answer} <eos>"
        ids = tokenizer.encode(text).ids
        assert len(ids) == len(text.split())
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_tokenizer_ids_are_those_the_checkpoints_were_trained_with():
    words = tokenizer_of("demo")
    for index, word in enumerate(tasks.WORD_PROBLEM_WORDS):
        assert words.token_to_id(word) == index
    automaton = tokenizer_of("demo-automaton")
    found = [
        automaton.token_to_id(word) for word in ("<bos>", "<eos>", "0", "1", "<ca>", "t1", "t8")
    ]
    assert found == [1, 2, 4, 5, 31, 32, 39]
    chained = tokenizer_of("demo-chained")
    for index, word in enumerate(tasks.CHAINED_WORDS):
        assert chained.token_to_id(word) == index


def test_unknown_word_is_refused():
    with pytest.raises(Exception, match="UNK"):
        tokenizer_of("demo").encode("<bos> Xerxes has 1 .")


@pytest.mark.parametrize("name", NAMES)
def test_problem_files_are_what_the_generator_writes(name, tmp_path):
    shipped = demo.demo_path(name) / "problems.json"
    assert write_problems(TASKS[name], tmp_path).read_text() == shipped.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_problems_are_many_and_distinct(name):
    problems = demo.load_problems(name)
    assert len(problems) >= 200
    assert len({problem.prompt for problem in problems}) == len(problems)


def test_word_problem_answers_are_right():
    """An independent reader: resolves the facts from the text, then checks each worked step."""
    for problem in demo.load_problems("demo"):
        facts, _, question = problem.prompt.removeprefix("<bos> ").partition("? ")
        amounts = {}
        sentences = [fact.split() for fact in facts.split(" .") if fact.strip()]
        assert len(sentences) == 4
        for name, has, *rest in sentences:
            assert has == "has"
            number = int("".join(word for word in rest if word.isdigit()) or 0)
            others = [amounts[word] for word in rest if word in amounts]
            if "more" in rest:
                amounts[name] = others[0] + number
            elif "fewer" in rest:
                amounts[name] = others[0] - number
            elif "times" in rest:
                amounts[name] = others[0] * number
            elif "plus" in rest:
                amounts[name] = others[0] + others[1]
            else:
                amounts[name] = number
        asked = question.split()[0]
        assert "".join(problem.value.split()) == str(amounts[asked])
        assert problem.answer.endswith(f"# {problem.value}")
        for step in problem.answer.split(" .")[:4]:
            name, *sides = step.replace(" ", "").split("=")
            results = {eval(side) for side in sides}
            assert results == {amounts[name[:3]]}, step


def test_automaton_answers_are_right():
    """Rule 110 from its truth table, by string replacement rather than bit arithmetic."""
    table = dict(
        zip(("111", "110", "101", "100", "011", "010", "001", "000"), "01101110", strict=True)
    )
    counts = []
    for problem in demo.load_problems("demo-automaton"):
        _, _, steps, *bits, _ = problem.prompt.split()
        counts.append(int(steps[1:]))
        row = "".join(bits)
        for _ in range(counts[-1]):
            padded = "00" + row
            row = "".join(table[padded[i : i + 3]] for i in range(32))
        assert problem.answer == " ".join(row) == problem.value
    assert {count: counts.count(count) for count in counts} == {k: 32 for k in range(1, 9)}


def test_chained_answers_are_right():
    """Each row from the one before it, by walking the substitution as a word map."""
    after = dict(zip("0123456789", "6890124753", strict=True))
    counts = []
    for problem in demo.load_problems("demo-chained"):
        _, _, steps, *row, _ = problem.prompt.split()
        counts.append(int(steps[1:]))
        assert len(row) == 12
        answer = []
        for mark in ("", "r2", "r3", "r4", "r5", "r6", "r7", "#"):
            new = []
            for place, digit in enumerate(row):
                for _ in range(counts[-1]):
                    digit = after[str(int(digit) + int(row[place - 1] if place else 0))[-1]]
                new.append(digit)
            row = new
            answer += [*mark.split(), *row]
        assert problem.answer.split() == answer
        assert problem.value.split() == row
    assert sum(count > 8 for count in counts) == 192  # three quarters need more than 4 iterations
    assert {counts.count(count) for count in range(13, 17)} == {32}


def test_step_aligned_target_stops_early():
    def target(known):
        return tasks.automaton(random.Random(5), 6, known).answer.split()

    prompt = tasks.automaton(random.Random(5), 6).prompt.split()
    row = [int(bit) for bit in prompt[3:-1]]
    assert target(0) == prompt[3:-1]
    assert target(1) == [str(bit) for bit in tasks.automaton_step(row)]
    assert target(6) == target(60) == tasks.automaton(random.Random(5), 6).answer.split()


def scored(answer, value, generated, words=()):
    problem = demo.Problem("<bos> ? <ans>", answer, value, words)
    return problem.is_correct(generated), problem.is_value_correct(generated)


@pytest.mark.parametrize(
    ("generated", "whole", "value"),
    [
        ("Dan = 1 4 . # 1 4", True, True),
        ("Dan = 1 4 . # 1 4 <eos>", True, True),
        ("Dan = 1 5 . # 1 4 <eos>", False, True),
        ("Dan = 1 4 . # 1 5 <eos>", False, False),
        ("Dan = 1 4 . # 1 4 4 <eos>", False, False),
        ("Dan = 1 4 . # 1 4 <eos> <eos>", False, False),
        ("Dan = 1 4 . # 1 <eos>", False, False),
        ("Dan = 1 4 .", False, False),
        ("", False, False),
    ],
)
def test_scoring_of_word_problems(generated, whole, value):
    assert scored("Dan = 1 4 . # 1 4", "1 4", generated) == (whole, value)


def test_scoring_of_bits_and_of_token_ids():
    words = ["<pad>", "<eos>", "0", "1"]
    assert scored("0 1 1", "0 1 1", "0 1 1") == (True, True)
    assert scored("0 1 1", "0 1 1", "0 1 0") == (False, False)
    assert scored("0 1 1", "0 1 1", [2, 3, 3, 1], words) == (True, True)
    assert scored("0 1 1", "0 1 1", [2, 3, 3], words) == (True, True)
    assert scored("0 1 1", "0 1 1", [2, 3, 3, 3, 1], words) == (False, False)
    assert scored("0 1 1", "0 1 1", [2, 3, 77], words) == (False, False)
    assert scored("0 1 1", "0 1 1", [], words) == (False, False)


@pytest.mark.parametrize("name", NAMES)
def test_every_problem_scores_its_own_answer(name):
    tokenizer = tokenizer_of(name)
    for problem in demo.load_problems(name):
        ids = tokenizer.encode(problem.answer + " <eos>").ids
        assert problem.is_correct(ids) and problem.is_value_correct(ids)
        assert not problem.is_correct(ids[1:])


def test_limit_takes_the_first():
    assert demo.load_problems("demo", limit=3) == demo.load_problems("demo")[:3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a JSON file"),
        ("{}", "non-empty list"),
        ("[]", "non-empty list"),
        ("[3]", "problem 0: expected an object"),
        ('[{"answer": "1", "value": "1"}]', "problem 0: prompt"),
        ('[{"prompt": "1", "answer": 1, "value": "1"}]', "problem 0: answer"),
        ('[{"prompt": "1", "answer": "1"}]', "'value' or 'bits'"),
    ],
)
def test_bad_problem_files_are_named(tmp_path, content, message):
    (tmp_path / "problems.json").write_text(content)
    tasks.save_tokenizer(tasks.WORD_PROBLEM_WORDS, tmp_path / "tokenizer.json")
    with pytest.raises(RdkernelsError, match=message) as caught:
        demo.load_problems(tmp_path)
    assert str(tmp_path / "problems.json") in str(caught.value)


def test_missing_files_and_names_are_named(tmp_path):
    with pytest.raises(RdkernelsError, match="unknown demo model 'demos'"):
        demo.demo_path("demos")
    with pytest.raises(RdkernelsError, match="cannot read the problem set"):
        demo.load_problems(tmp_path)
    (tmp_path / "problems.json").write_text(
        json.dumps([{"prompt": "1", "answer": "1", "value": "1"}])
    )
    with pytest.raises(RdkernelsError, match=r"tokenizer\.json"):
        demo.load_problems(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RdkernelsError, match="not a tokenizer file"):
        demo.load_problems(tmp_path)
    with pytest.raises(RdkernelsError, match="limit: expected at least 1"):
        demo.load_problems("demo", limit=0)
