"""``Engine``: whatever comes, ends or is cancelled, a request gives what it gives alone."""

from __future__ import annotations

import gc
import random
from dataclasses import dataclass, field

import pytest
import torch

from rdkernels.engine import Completion, Engine, Update
from rdkernels.errors import ArgumentError
from tests.support.samplers import CHOICES, EAGER, PENALISED, SAMPLERS
from tests.support.tiny import CONFIG, tiny_model

NAMES = ["diffusion", "refined", "unfilled-slots", "token-stable", "entropy", "inner-exit"]
NAMES += ["adaptive-kl", "continuous", "speculative", "speculative-shared", "lossless"]


@dataclass
class Asked:
    """A request as it was submitted, and what the engine said of it."""

    prompt: list[int]
    count: int
    key: int
    updates: list[Update] = field(default_factory=list)
    cancelled: bool = False


@dataclass
class Traffic:
    """Requests that come and go at random, on one engine."""

    engine: Engine
    rng: random.Random
    asked: dict[int, Asked] = field(default_factory=dict)
    ended: dict[int, Completion] = field(default_factory=dict)

    def act(self) -> None:
        kind = self.rng.choice(["submit", "submit", "step", "step", "step", "step", "cancel"])
        if kind == "submit" and len(self.asked) - len(self.ended) < 8:
            self.submit()
        elif kind == "cancel" and self.rng.random() < 0.4:
            self.cancel()
        else:
            self.engine.step()
        if self.rng.random() < 0.3:
            self.collect()

    def submit(self) -> None:
        length = self.rng.choice([1, 2, 5, 17, 40])
        prompt = [self.rng.randrange(CONFIG.vocab_size) for _ in range(length)]
        asked = Asked(prompt, self.rng.choice([1, 2, 6, 14]), self.rng.randrange(1 << 31))
        number = self.engine.submit(
            prompt,
            max_new_tokens=asked.count,
            sequence_id=asked.key,
            on_update=asked.updates.append,
        )
        assert number not in self.asked
        self.asked[number] = asked

    def cancel(self) -> None:
        going = [r for r, a in self.asked.items() if r not in self.ended and not a.cancelled]
        if going:
            request = self.rng.choice(going)
            try:
                self.engine.cancel(request)
                self.asked[request].cancelled = True
            except ArgumentError:
                self.collect()
                assert request in self.ended, "refused, though it had not ended"

    def collect(self) -> None:
        fresh = self.engine.results()
        assert not fresh.keys() & self.ended.keys(), "a result was given twice"
        self.ended |= fresh

    def finish(self) -> None:
        self.ended |= self.engine.run()
        assert self.engine.idle
        assert self.ended.keys() == self.asked.keys()
        assert self.engine.results() == {}


def alone(model, asked: Asked, **options: object) -> Completion:
    engine = Engine(model, max_sequences=1, **options)
    number = engine.submit(asked.prompt, max_new_tokens=asked.count, sequence_id=asked.key)
    return engine.run()[number]


def free_pages(engine: Engine) -> tuple[int, int]:
    report = engine.loop.cache.memory_report()
    return report.free_pages, report.pages


def check_traffic(seed: int, name: str, operations: int, **engine_options: object) -> None:
    rng = random.Random(f"{seed} {name}")
    model = tiny_model(seed, dtype=torch.float64)
    options = {
        "sampler": SAMPLERS[name],
        "sampling": rng.choice([*CHOICES.values(), PENALISED]),
        "stop_tokens": rng.sample(range(CONFIG.vocab_size), rng.choice([0, 3])),
        "seed": seed,
        "max_tokens": 60,
        "log_probs": True,
    }
    engine = Engine(model, max_sequences=3, **options, **engine_options)
    traffic = Traffic(engine, rng)
    for _ in range(operations):
        traffic.act()
    traffic.finish()
    assert free_pages(engine)[0] == free_pages(engine)[1]
    for number, asked in traffic.asked.items():
        got, wanted = traffic.ended[number], alone(model, asked, **options)
        told = [token for update in asked.updates for token in update.tokens]
        assert told == got.tokens
        assert {update.request for update in asked.updates} <= {number}
        count = len(got.tokens)
        assert got.tokens == wanted.tokens[:count]
        assert got.depths == wanted.depths[:count]
        assert got.log_probs == pytest.approx(wanted.log_probs[:count], abs=1e-5)
        assert got.finish_reason == ("cancelled" if asked.cancelled else wanted.finish_reason)
        if not asked.cancelled:
            assert count == len(wanted.tokens)
            if SAMPLERS[name].wavefront_policy().inner_exit_threshold is None:
                assert got.core_iterations == wanted.core_iterations


@pytest.mark.parametrize("name", NAMES)
def test_each_request_gives_what_it_gives_alone(seed, name):
    check_traffic(seed, name, 40, cache_tokens=128)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("trial", range(2))
def test_each_request_gives_what_it_gives_alone_at_length(seed, name, trial):
    check_traffic(seed + trial, name, 120, cache_tokens=[64, None][trial])


@pytest.mark.parametrize("name", ["diffusion", "autoregressive", "refined", "last-converged"])
def test_padded_rows_change_nothing(seed, name):
    check_traffic(seed, name, 30, buckets=(3, 8))


def live_tensors(engine: Engine) -> tuple[int, int]:
    """Tensors that Python sees and their bytes, but for the row buffers, which have a capacity."""
    engine.loop.buffers._views.clear()
    gc.collect()
    found = [obj for obj in gc.get_objects() if type(obj) is torch.Tensor]
    memory = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}
    for buffer in (*engine.loop.buffers.whole, engine.loop.buffers.report):
        memory.pop(buffer.untyped_storage().data_ptr(), None)
    return len(found), sum(memory.values())


@pytest.mark.parametrize(
    "operations", [500, pytest.param(5000, marks=pytest.mark.slow)], ids=["short", "long"]
)
@pytest.mark.parametrize("name", ["diffusion", "refined", "speculative", "adaptive-kl"])
def test_nothing_piles_up(name, operations, seed):
    """After any amount of traffic: all pages free, as many tensors as before, bounded buffers."""
    rng = random.Random(seed)
    engine = Engine(tiny_model(seed), sampler=SAMPLERS[name], max_sequences=3, max_tokens=60)
    used = []
    for count in (50, operations):
        traffic = Traffic(engine, rng)
        for _ in range(count):
            traffic.act()
        traffic.finish()
        engine.submit([1, 2, 3], max_new_tokens=4, sequence_id=1)  # the last step is the same
        engine.run()
        assert free_pages(engine)[0] == free_pages(engine)[1]
        for pool in (engine.loop.cache._outer, engine.loop.cache._core):
            assert not any(pool.owned)
            assert sorted(pool.free) == list(range(pool.capacity))
        del traffic
        used.append(live_tensors(engine))
    assert used[1] == used[0]
    assert engine.loop.buffers.capacity <= 2 * 3 * 60


def test_requests_that_end_at_once_leave_no_rows_behind(seed):
    """One token each: the prefill gives it, and no outer step ever runs."""
    engine = Engine(tiny_model(seed), sampler=EAGER, max_sequences=2)
    for _ in range(50):
        engine.submit([1, 2, 3], max_new_tokens=1)
    assert len(engine.run()) == 50
    assert engine.loop.outer_steps == 0
    assert engine.loop.buffers.capacity <= 4
