"""The layer operators: native equals plain PyTorch, and no row's bits depend on the batch it is computed in."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from service.model import native_build
from service.model.attention import SequenceSpan
from service.model.kv_cache import KVCache, LayerCache
from service.model.linear import Linear, share_packed
from service.model.lora import LowRank, UpPart
from service.model.native_ops import NativeOps
from service.model.ops import Ops, TorchOps

CPU = torch.device("cpu")
BLOCK = 16
DTYPES = [torch.float32, torch.bfloat16]
# heads, KV heads, head dim: grouped like SmolLM2, one to one like GPT-2, many to one
SHAPES = [(9, 3, 64), (4, 4, 32), (8, 1, 128)]


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Callable[[torch.dtype], Ops]:
    library = native_build.load(native_build.OPERATORS, tmp_path_factory.mktemp("native"))
    if library is None:
        pytest.skip("no C compiler here: the native kernels cannot be built")
    return lambda dtype: NativeOps(library, dtype)


@pytest.fixture(params=["torch", "native"])
def make_ops(request: pytest.FixtureRequest) -> Callable[[torch.dtype], Ops]:
    if request.param == "torch":
        return lambda dtype: TorchOps()
    factory: Callable[[torch.dtype], Ops] = request.getfixturevalue("native")
    return factory


def filled_cache(shape: tuple[int, int, int], dtype: torch.dtype, num_blocks: int) -> LayerCache:
    cache = KVCache(
        num_layers=1,
        num_kv_heads=shape[1],
        head_dim=shape[2],
        num_blocks=num_blocks,
        block_size=BLOCK,
        dtype=dtype,
        device=CPU,
    ).layers[0]
    generator = torch.Generator().manual_seed(1)
    for blocks in (cache.keys, cache.values):
        blocks.copy_(torch.randn(blocks.shape, generator=generator))
    return cache


def attend(ops: Ops, query: Tensor, cache: LayerCache, spans: list[SequenceSpan], window: int | None) -> Tensor:
    plan = ops.plan(spans, block_size=BLOCK, device=CPU, sliding_window=window)
    return ops.attention(query, cache, plan, scale=query.shape[2] ** -0.5).view(query.shape)


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_equals_dense_softmax(
    make_ops: Callable[[torch.dtype], Ops], shape: tuple[int, int, int], dtype: torch.dtype, window: int | None
) -> None:
    """Paged attention over shuffled blocks equals PyTorch's dense attention over the same keys and values."""
    heads, kv_heads, dim = shape
    length, num_blocks = 173, 40
    cache = filled_cache(shape, dtype, num_blocks)
    table = random.Random(0).sample(range(num_blocks), -(-length // BLOCK))
    query = torch.randn(length, heads, dim, generator=torch.Generator().manual_seed(2)).to(dtype)
    keys = cache.keys[table].permute(1, 0, 3, 2).reshape(kv_heads, -1, dim)[:, :length].float()
    values = cache.values[table].permute(1, 0, 2, 3).reshape(kv_heads, -1, dim)[:, :length].float()
    at = torch.arange(length)
    seen = at[None] <= at[:, None]
    if window is not None:
        seen &= at[None] > at[:, None] - window
    expected = functional.scaled_dot_product_attention(
        query.float().transpose(0, 1)[None], keys[None], values[None], attn_mask=seen, enable_gqa=True
    )[0].transpose(0, 1)

    actual = attend(make_ops(dtype), query, cache, [SequenceSpan(length, length, table)], window)

    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(actual.float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_bits_do_not_depend_on_chunks_or_neighbours(
    make_ops: Callable[[torch.dtype], Ops], shape: tuple[int, int, int], dtype: torch.dtype, window: int | None
) -> None:
    """Every query has the same bits computed with all others, in chunks of any size, alone, and among others."""
    heads, _, dim = shape
    length, num_blocks = 200, 60
    rng = random.Random(3)
    cache = filled_cache(shape, dtype, num_blocks)
    table = rng.sample(range(num_blocks), -(-length // BLOCK))
    query = torch.randn(length, heads, dim, generator=torch.Generator().manual_seed(4)).to(dtype)
    ops = make_ops(dtype)
    whole = attend(ops, query, cache, [SequenceSpan(length, length, table)], window)

    for chunk in (1, 2, 3, 7, 8, 31, 33, 100):
        for start in range(0, length - chunk, 29):
            end = start + chunk
            other = rng.randrange(1, 150)
            neighbour = SequenceSpan(
                rng.randrange(1, other + 1), other, rng.sample(range(num_blocks), -(-other // BLOCK))
            )
            rows = torch.cat([torch.randn(neighbour.num_new_tokens, heads, dim).to(dtype), query[start:end]])
            part = attend(ops, rows, cache, [neighbour, SequenceSpan(chunk, end, table)], window)
            assert torch.equal(part[neighbour.num_new_tokens :], whole[start:end]), (chunk, start)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_does_not_see_what_others_left(make_ops: Callable[[torch.dtype], Ops], dtype: torch.dtype) -> None:
    """NaN in the slots of a block behind a sequence's last token (another's failure) does not reach it."""
    shape, length = SHAPES[0], 83
    heads, _, dim = shape
    clean, dirty = (filled_cache(shape, dtype, 8) for _ in range(2))
    table = [5, 2, 7, 0, 3, 1]
    dirty.keys[1, :, :, length % BLOCK :] = float("nan")
    dirty.values[1, :, length % BLOCK :] = float("nan")
    query = torch.randn(length, heads, dim, generator=torch.Generator().manual_seed(7)).to(dtype)
    spans = [SequenceSpan(length, length, table)]
    ops = make_ops(dtype)
    assert torch.equal(attend(ops, query, clean, spans, None), attend(ops, query, dirty, spans, None))


@pytest.mark.parametrize("dtype", DTYPES)
def test_native_operators_equal_plain_pytorch(native: Callable[[torch.dtype], Ops], dtype: torch.dtype) -> None:
    """Norm with residual, rotary with cache write and gated activation: native and plain agree to rounding."""
    reference, fast = TorchOps(), native(dtype)
    generator = torch.Generator().manual_seed(5)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    residual, delta, weight = rand(70, 96), rand(70, 96), rand(96)
    copies = residual.clone(), residual.clone()
    torch.testing.assert_close(
        fast.rms_norm(copies[0], delta, weight, 1e-5),
        reference.rms_norm(copies[1], delta, weight, 1e-5),
        atol=tolerance,
        rtol=tolerance,
    )
    assert torch.equal(copies[0], copies[1])
    gate_up = rand(70, 64) * 20
    torch.testing.assert_close(
        fast.silu_gate(gate_up), reference.silu_gate(gate_up), atol=tolerance * 10, rtol=tolerance
    )
    heads, kv_heads, dim = 4, 2, 32
    qkv, slots = rand(40, (heads + 2 * kv_heads) * dim), torch.randperm(160, generator=generator)[:40]
    angle = torch.randn((40, dim // 2), generator=generator)
    for rotation in ((angle.cos(), angle.sin()), None):
        caches = [filled_cache((heads, kv_heads, dim), dtype, 10) for _ in range(2)]
        queries = [
            ops.rotary_and_cache(qkv.clone(), rotation, slots, cache, heads)
            for ops, cache in zip((fast, reference), caches, strict=True)
        ]
        torch.testing.assert_close(queries[0], queries[1], atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(caches[0].keys, caches[1].keys, atol=tolerance, rtol=tolerance)
        assert torch.equal(caches[0].values, caches[1].values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_operators_do_not_depend_on_other_rows(make_ops: Callable[[torch.dtype], Ops], dtype: torch.dtype) -> None:
    """A row of a norm or an activation has the same bits whatever the number of rows."""
    ops = make_ops(dtype)
    x, weight = torch.randn(130, 192).to(dtype), torch.randn(192).to(dtype)
    normed, gated = ops.rms_norm(x.clone(), x, weight, 1e-6), ops.silu_gate(x)
    for count in (1, 2, 3, 17, 64):
        assert torch.equal(ops.rms_norm(x[:count].clone(), x[:count].contiguous(), weight, 1e-6), normed[:count])
        assert torch.equal(ops.silu_gate(x[:count].contiguous()), gated[:count])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(960, 576), (576, 1536), (64, 32), (1000, 64)])
def test_linear_rows_do_not_depend_on_other_rows(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """A row of a linear layer has the same bits for every number of rows: the shape rule of batch invariance."""
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(shape, generator=generator).to(dtype)
    bias = torch.randn(shape[0], generator=generator).to(dtype)
    x = torch.randn(300, shape[1], generator=generator).to(dtype)
    linear = Linear(weight, bias)
    whole = linear(x)
    torch.testing.assert_close(
        whole.float(),
        x.float() @ weight.float().T + bias.float(),
        rtol=2e-2,
        atol=0.5 if dtype == torch.bfloat16 else 1e-3,
    )
    for count in (1, 2, 3, 4, 5, 8, 15, 16, 17, 33, 64, 100, 256):
        assert torch.equal(linear(x[:count]), whole[:count]), count


def low_rank(num_inputs: int, widths: list[int], rank: int, dtype: torch.dtype) -> LowRank:
    generator = torch.Generator().manual_seed(8)
    parts = [UpPart(sum(widths[:i]) + 16, width, i * rank, rank) for i, width in enumerate(widths)]
    down = torch.randn(rank * len(widths), num_inputs, generator=generator) / 8
    return LowRank(down.to(dtype), torch.randn(rank * sum(widths), generator=generator).to(dtype), tuple(parts))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("widths", "rank"), [([96], 1), ([64, 32, 32], 8), ([192, 192], 24)])
def test_low_rank_products(
    make_ops: Callable[[torch.dtype], Ops], widths: list[int], rank: int, dtype: torch.dtype
) -> None:
    """The rows asked for get the product, in the columns of its parts; a row's bits do not depend on the others."""
    ops, delta = make_ops(dtype), low_rank(64, widths, rank, dtype)
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(100, 64, generator=generator).to(dtype)
    before = torch.randn(100, 32 + sum(widths), generator=generator).to(dtype)
    rows = torch.randperm(100, generator=generator)[:70]
    prepared, y = ops.prepare_low_rank(delta), before.clone()

    ops.add_low_rank(x, y, rows, prepared)

    expected = before.float().clone()
    hidden = x[rows].float() @ delta.down.float().T
    ups = torch.split(delta.up.float(), [rank * width for width in widths])
    for part, up in zip(delta.parts, ups, strict=True):
        added = hidden[:, part.first_rank : part.first_rank + rank] @ up.view(rank, -1)
        expected[rows, part.first_column : part.first_column + part.num_columns] += added
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(y.float(), expected, atol=tolerance, rtol=tolerance)
    others = torch.ones(100, dtype=torch.bool).index_fill(0, rows, value=False)
    assert torch.equal(y[others], before[others])
    for count in (1, 2, 3, 7, 8, 9, 33):
        some, again = rows[torch.randperm(70, generator=generator)[:count]], before.clone()
        ops.add_low_rank(x, again, some, prepared)
        assert torch.equal(again[some], y[some]), count


SHARING_PROCESS = """
import sys, pathlib, torch
from service.model.linear import Linear, alike_allocations, share_packed
weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(1)).bfloat16()
x = torch.ones(5, 1024).bfloat16()
with alike_allocations():
    linear = Linear(weight)
expected = linear(x)
shared = share_packed([linear], pathlib.Path(sys.argv[1]))
mapped = sum(line.endswith(sys.argv[1]) for line in pathlib.Path("/proc/self/maps").read_text().splitlines())
print(shared, mapped, torch.equal(linear(x), expected))
"""


def test_packed_weights_are_shared_through_a_file(tmp_path: Path) -> None:
    """Two processes map their packed weight from one file, all but its first and last page, and compute the same."""
    command = [sys.executable, "-c", SHARING_PROCESS, str(tmp_path / "packed.bin")]
    for _ in range(2):
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        assert result.stdout.split() == [str(2**20 - 4096), "1", "True"]


def test_a_different_file_is_not_mapped(tmp_path: Path) -> None:
    """A file whose bytes are not the weight's own leaves the weight alone: it can be slow, never wrong."""
    path = tmp_path / "packed.bin"
    share_packed([Linear(torch.randn(512, 1024).bfloat16())], path)
    other = Linear(torch.randn(512, 1024).bfloat16())
    expected = other(torch.ones(2, 1024).bfloat16())

    assert share_packed([other], path) == 0
    assert torch.equal(other(torch.ones(2, 1024).bfloat16()), expected)
