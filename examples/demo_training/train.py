"""Train a demo model on one CPU core and write a folder that ``rdkernels.load_model`` reads.

python -m examples.demo_training.train --task word-problems --minutes 30 --out my-demo
python -m examples.demo_training.train --task automaton --minutes 30 --out my-automaton

Then ``rdkernels demo --model my-demo`` runs it on its held-out problems.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from examples.demo_training.curriculum import IGNORED, TRAINING_TASKS, TrainingTask
from examples.demo_training.make_problems import write_problems
from examples.demo_training.model import TrainingModel
from examples.demo_training.optimizer import MixedPrecisionOptimizer
from examples.demo_training.tasks import BOS, EOS, PAD, save_tokenizer
from rdkernels.models.config import ModelConfig
from rdkernels.models.families import config_to_dict

_WARM_UP_STEPS = 50
_FINAL_RATE = 0.02  # learning rates end at this share of their peak
_LOG_SECONDS = 20.0
_SAVE_SECONDS = 240.0


@dataclass(frozen=True)
class Options:
    """A training run. It ends after ``minutes`` or ``max_steps``, whichever comes first.

    ``start``: a folder that a run wrote, to train on from its weights. The curriculum then begins
    at ``level``, by default its end.
    """

    task: str
    out: Path
    minutes: float = 30.0
    max_steps: int | None = None
    seed: int = 1
    muon_rate: float = 0.014
    adamw_rate: float = 3e-3
    dtype: torch.dtype = torch.bfloat16
    compile: bool = True
    start: Path | None = None
    level: int | None = None


def demo_config(task: TrainingTask) -> ModelConfig:
    """The shape of the shipped models: 0.85M parameters, prelude 1, core 2, coda 1."""
    return ModelConfig(
        hidden_size=128,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        intermediate_size=352,
        prelude_layers=1,
        core_layers=2,
        coda_layers=1,
        context_length=task.context,
        vocab_size=-(-len(task.words) // 16) * 16,  # padded to a multiple of 16
        mean_recurrence=task.mean_recurrence,
    )


def schedule(progress: float, step: int, decay: float) -> float:
    """Learning-rate factor: a short warm-up, a plateau, then linear over the last ``decay``."""
    warm_up = min(1.0, (step + 1) / _WARM_UP_STEPS)
    return warm_up * min(1.0, max(_FINAL_RATE, (1 - progress) / decay))


def train(
    options: Options,
    config: ModelConfig | None = None,
    log: Callable[[str], None] = print,
) -> list[float]:
    """Train, save to ``options.out``, and return the loss of every step."""
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    task = TRAINING_TASKS[options.task]()
    masters = TrainingModel(config or demo_config(task))
    if options.start is not None:
        weights = load_file(str(options.start / "model.safetensors"))
        masters.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        task.level = options.level or task.last_level
    optimizer = MixedPrecisionOptimizer(
        masters,
        options.muon_rate,
        options.adamw_rate,
        options.dtype,
    )
    model = optimizer.shadow
    if options.compile:
        _compile_core(model)
    options.out.mkdir(parents=True, exist_ok=True)
    losses: list[float] = []
    began = logged = saved = time.monotonic()
    tokens = 0
    while (progress := _progress(options, len(losses), time.monotonic() - began)) < 1:
        steps = task.steps(rng)
        batch = task.batch(rng, task.batch_size, steps)
        warm = batch.warm
        state = model.warm_state(warm.ids, warm.steps, warm.fresh) if warm else None
        logits = model(batch.ids, steps.total, steps.backprop, state)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        optimizer.step(schedule(progress, len(losses), task.decay))
        task.observe(logits.detach(), batch, steps)
        losses.append(loss.item())
        tokens += batch.ids.numel()
        now = time.monotonic()
        if now - logged > _LOG_SECONDS:
            recent = sum(losses[-50:]) / len(losses[-50:])
            log(
                f"{now - began:6.0f} s  step {len(losses):6d}  loss {recent:.4f}  {task.stage}  "
                f"{tokens / 1e6:.2f}M tokens"
            )
            logged = now
        if now - saved > _SAVE_SECONDS:
            save(optimizer.masters, options)
            saved = now
    save(optimizer.masters, options)
    log(f"{len(losses)} steps, {tokens / 1e6:.2f}M tokens; saved to {options.out}")
    return losses


def _progress(options: Options, step: int, seconds: float) -> float:
    """Share of the run that is over, 1 at its end."""
    by_time = seconds / (60 * options.minutes)
    return by_time if options.max_steps is None else max(by_time, step / options.max_steps)


def _compile_core(model: TrainingModel) -> None:
    """Fuse the core step; it is compiled once with gradients and once without."""
    torch._dynamo.config.recompile_limit = 64
    model.iterate = torch.compile(model.iterate, dynamic=False)


def save(model: TrainingModel, options: Options) -> None:
    """Write the model, its configs, tokenizer and held-out problems to ``options.out``.

    A checkpoint replaces the one before only when it is complete.
    """
    weights = {
        name: tensor.detach().to(options.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    part = options.out / "model.safetensors.part"
    save_file(weights, str(part), metadata={"format": "pt"})
    part.replace(options.out / "model.safetensors")
    dtype = str(options.dtype).removeprefix("torch.")
    text = json.dumps(config_to_dict(model.config, dtype), indent=2) + "\n"
    (options.out / "config.json").write_text(text, encoding="utf-8")
    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    (options.out / "generation_config.json").write_text(json.dumps(ids) + "\n", encoding="utf-8")
    save_tokenizer(TRAINING_TASKS[options.task].words, options.out / "tokenizer.json")
    write_problems(options.task, options.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=sorted(TRAINING_TASKS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--start", type=Path, help="a folder to train on from")
    parser.add_argument("--level", type=int, help="where the curriculum begins with --start")
    parser.add_argument("--muon-rate", type=float, default=Options.muon_rate)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="one is fastest at this size")
    parser.add_argument("--no-compile", action="store_true", help="where there is no C++ compiler")
    arguments = parser.parse_args()
    if arguments.minutes <= 0:
        parser.error(f"--minutes: expected more than 0, got {arguments.minutes}")
    torch.set_num_threads(arguments.threads)
    options = Options(
        arguments.task,
        arguments.out,
        arguments.minutes,
        seed=arguments.seed,
        muon_rate=arguments.muon_rate,
        start=arguments.start,
        level=arguments.level,
    )
    train(
        replace(options, compile=not arguments.no_compile), log=lambda line: print(line, flush=True)
    )


if __name__ == "__main__":
    main()
