"""CUDA graphs on the CPU: capture records torch ops without effect, replay runs them again.

As on a GPU, a replay has the addresses and the Python values of its capture: what the ops made then
is overwritten, and memory that has been given up since is written all the same. As on a GPU,
reading a value back while a graph is captured is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


def written(func: Any, args: tuple, kwargs: dict) -> list[torch.Tensor]:
    """The arguments that an op writes, by its schema."""
    arguments = func._schema.arguments
    values = dict(zip((argument.name for argument in arguments), args, strict=False)) | kwargs
    names = [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]
    return [t for name in names for t in tree_leaves(values.get(name)) if t is not None]


def not_while_capturing(*_: object) -> None:
    raise RuntimeError("operation not permitted when stream is capturing")


class FakeGraph(TorchDispatchMode):
    """Stands for ``torch.cuda.CUDAGraph``; entered, it captures."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in READS:
            not_while_capturing()
        self.before += [(tensor, tensor.clone()) for tensor in written(func, args, kwargs)]
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result

    def undo(self) -> None:
        for tensor, before in reversed(self.before):
            tensor.copy_(before)
        self.before.clear()

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            made = [returned.alias_info is None for returned in func._schema.returns]
            if any(made):
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    old.copy_(new)


class FakeStream:
    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def fake_graphs(monkeypatch) -> list[str]:
    """``torch.cuda``'s graphs and streams as fakes; what they did, in words."""
    log: list[str] = []
    main = FakeStream(log, "main")

    @contextmanager
    def on_stream(stream: FakeStream) -> Iterator[None]:
        log.append(f"on {stream.name}")
        yield

    @contextmanager
    def capture(graph: FakeGraph, pool: object = None) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "tolist", not_while_capturing)
            with graph:
                yield
        graph.undo()
        log.append(f"captured into {pool}")

    pools = iter(range(1000))
    fakes = {
        "CUDAGraph": FakeGraph,
        "Stream": lambda *_: FakeStream(log, "side"),
        "current_stream": lambda *_: main,
        "stream": on_stream,
        "graph": capture,
        "device": lambda *_: nullcontext(),
        "graph_pool_handle": lambda: f"pool {next(pools)}",
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return log
