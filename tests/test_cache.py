"""SharedKVCache: pages change owners, never cells; what does not fit changes nothing."""

from __future__ import annotations

import random

import pytest
import torch

from rdkernels import SharedKVCache
from rdkernels.errors import ArgumentError, CacheFullError


def make(**changes):
    sizes = dict(
        prelude_layers=1,
        core_layers=2,
        coda_layers=1,
        num_kv_heads=2,
        head_dim=4,
        max_sequences=3,
        max_tokens=100,
        page_size=16,
    )
    return SharedKVCache(**(sizes | changes))


def owned(cache):
    """Pages per (pool, sequence, slot), as the tables say up to what is reserved."""
    return [list(pages) for pool in (cache._outer, cache._core) for pages in pool.owned]


def tables(cache):
    return [cache.page_table().clone(), cache.core_page_tables().clone()]


@pytest.mark.parametrize("slots", [1, 3])
def test_pages_are_never_shared_nor_lost(seed, slots):
    """Random reserve and truncate: every page has one owner or is free, and tables agree."""
    rng = random.Random(seed)
    cache = make(slots=slots, total_tokens=160)
    pages = {0: cache._outer.capacity, 1: cache._core.capacity}
    length = [0] * 3
    for _ in range(200):
        b, tokens = rng.randrange(3), rng.randint(0, 100)
        if rng.random() < 0.5:
            before = tables(cache)
            try:
                cache.reserve(b, tokens)
                length[b] = max(length[b], -(-tokens // 16))
            except CacheFullError:
                assert all(torch.equal(x, y) for x, y in zip(before, tables(cache), strict=True))
        else:
            cache.truncate(b, tokens)
            length[b] = min(length[b], -(-tokens // 16))
        for index, pool in enumerate((cache._outer, cache._core)):
            held = [page for pages_of in pool.owned for page in pages_of]
            assert sorted(held + pool.free) == list(range(pages[index]))
        for b in range(3):
            assert len(cache._outer.owned[b]) == length[b]
            assert cache.page_table()[b, : length[b]].tolist() == cache._outer.owned[b]
            for slot in range(slots):
                mine = cache._core.owned[b * slots + slot]
                assert cache.core_page_table(slot)[b, : length[b]].tolist() == mine
                assert cache.core_page_tables()[b, slot, : length[b]].tolist() == mine


@pytest.mark.parametrize("slots", [1, 2])
def test_full_cache_is_all_or_nothing(slots):
    cache = make(slots=slots, total_tokens=48)  # 3 pages
    cache.reserve(0, 17)  # 2 pages
    before, report = owned(cache), cache.memory_report()
    with pytest.raises(CacheFullError, match=r"sequence 1 needs .*20 tokens"):
        cache.reserve(1, 20)
    assert owned(cache) == before
    assert cache.memory_report() == report
    cache.reserve(1, 16)  # what is left still fits
    cache.reserve(0, 32)  # and what one owns already needs nothing new
    with pytest.raises(CacheFullError):
        cache.reserve(0, 33)


def test_core_pool_runs_out_without_taking_outer_pages():
    """The pools are checked together: a full core pool must not leave outer pages taken."""
    cache = make(slots=2, total_tokens=48)
    cache._core.free = cache._core.free[:1]  # as if the core pool were the smaller one
    with pytest.raises(CacheFullError):
        cache.reserve(0, 1)
    assert cache._outer.owned[0] == []
    assert len(cache._outer.free) == 3


def test_truncate_gives_pages_back_and_keeps_cells():
    cache = make()
    cache.reserve(0, 100)
    first = cache.page_table()[0].tolist()
    for layer in cache.core:
        layer.key.normal_()
    cells = [layer.key.clone() for layer in cache.core]
    cache.truncate(0, 33)  # positions 0 to 32 stay: 3 pages
    assert cache.page_table()[0, :3].tolist() == first[:3]
    assert len(cache._outer.owned[0]) == 3
    cache.truncate(0, 33)
    cache.reserve(1, 64)
    cache.reserve(0, 48)
    assert cache.page_table()[0, :3].tolist() == first[:3]
    assert all(torch.equal(x, la.key) for x, la in zip(cells, cache.core, strict=True))
    cache.truncate(0)
    assert cache._outer.owned[0] == []
    cache.truncate(0)


def test_tables_of_a_slice_of_sequences():
    cache = make(slots=2)
    for b in range(3):
        cache.reserve(b, 20 * (b + 1))
    part = slice(1, 3)
    assert torch.equal(cache.page_table(part), cache.page_table()[1:3])
    assert torch.equal(cache.core_page_table(1, part), cache.core_page_tables()[1:3, 1])
    used = {int(p) for b, s in [(0, 0), (0, 1)] for p in cache.core_page_tables()[b, s, :2]}
    assert len(used) == 4  # the slots of a sequence never share a page


def test_memory_report_counts_bytes():
    cache = make(slots=3, dtype=torch.bfloat16)
    cell = 2 * 2 * 4 * 2  # K and V, heads, head_dim, bytes
    pages = 3 * 7
    report = cache.memory_report()
    assert report.reserved_bytes == pages * 16 * cell * (2 + 2 * 3)
    tensors = [t for la in (*cache.prelude, *cache.core, *cache.coda) for t in (la.key, la.value)]
    assert report.reserved_bytes == sum(t.numel() * t.element_size() for t in tensors)
    assert (report.used_bytes, report.pages, report.free_pages) == (0, 4 * pages, 4 * pages)
    assert report.bytes_per_token == cell * (2 + 2 * 3)
    cache.reserve(2, 17)
    report = cache.memory_report()
    assert report.used_bytes == 2 * 16 * report.bytes_per_token
    assert report.free_pages == 4 * pages - 2 * 4
    assert "MiB" in str(report)
    assert str(report.free_pages) in str(report)


@pytest.mark.parametrize("position", [0, 15, 16, 37])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 9])
def test_fill_slots_repeats_the_last_iteration(position, depth):
    cache = make(slots=4)
    cache.reserve(0, 40)
    cache.reserve(1, 40)
    for layer in cache.core:
        layer.key.normal_()
        layer.value.normal_()
    before = [(la.key.clone(), la.value.clone()) for la in cache.core]
    cache.fill_slots(1, position, depth)
    for layer, (key, value) in zip(cache.core, before, strict=True):
        for pool, old in ((layer.key, key), (layer.value, value)):
            expected = old.clone()
            for slot in range(depth, 4):
                source = int(cache.core_page_tables()[1, depth - 1, position // 16])
                target = int(cache.core_page_tables()[1, slot, position // 16])
                expected[target, position % 16] = old[source, position % 16]
            assert torch.equal(pool, expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_sequences", 0),
        ("max_tokens", 0),
        ("slots", 0),
        ("page_size", 8),
        ("page_size", 24),
        ("page_size", 0),
    ],
)
def test_bad_sizes_are_refused(name, value):
    with pytest.raises(ArgumentError, match=name):
        make(**{name: value})


@pytest.mark.parametrize(
    ("sequence", "tokens", "named"),
    [(-1, 1, "sequence"), (3, 1, "sequence"), (0, -1, "tokens"), (0, 101, "tokens")],
)
def test_reserve_out_of_range(sequence, tokens, named):
    with pytest.raises(ArgumentError, match=named):
        make().reserve(sequence, tokens)


def test_dtype_and_device_of_the_pools():
    cache = make(dtype=torch.float16)
    for layer in (*cache.prelude, *cache.core, *cache.coda):
        assert layer.key.dtype == layer.value.dtype == torch.float16
        assert layer.key.shape == layer.value.shape
    assert cache.page_table().dtype == cache.core_page_tables().dtype == torch.int32
