"""Linear layers: our own packed weights where there are kernels for them, else oneDNN's on a CPU, else plain.

oneDNN's packing (a blocked, vector-friendly copy of the weight) made decode at batch 1 of the default model 2.7 times
faster than `torch.nn.functional.linear` and keeps the bits of a row the same for any number of rows ≥ 2; with one row
oneDNN may split the sum between threads, so a lone row is computed as two (docs/decisions/0002).

Our own packed weights are mapped from a file as they are (`service.model.panels`). One of oneDNN's would be a private
copy in every replica: `share_packed` puts it into a file and maps the file over the buffer, page by page, after
checking that the bytes are the same: replicas of a node share the page cache's one copy.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from service.model.native_linear import NativeWeight

logger = logging.getLogger(__name__)

PACKABLE = (torch.float32, torch.bfloat16)
PACK_FOR_ROWS = 16  # the batch size whose kernel the blocked layout is chosen for

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
LARGEST_MMAP_THRESHOLD = 32 << 20
KEPT_BYTES = 512 << 20
PAGE = mmap.PAGESIZE
START_IN_PAGE = 64  # where PyTorch's allocator puts what malloc maps for it


class Additions(Protocol):
    """Adds to the results of linear layers."""

    def add(self, name: str, x: Tensor, y: Tensor) -> None:
        """Change `y`, the result of the layer `name` for `x`, in place."""


class Linear:
    """y = x Wᵀ + b; x [num_rows, K], weight [N, K], bias [N]. On CPU rows do not influence each other's bits.

    Adapters know it by its `name`.
    """

    def __init__(self, weight: Tensor | NativeWeight, bias: Tensor | None = None, *, name: str = "") -> None:
        self.name = name
        self.bias = bias
        self.num_weights = weight.numel()
        self.num_bytes = weight.nbytes
        self.is_packed = _is_for_onednn(weight)
        self.weight = weight
        if self.is_packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_FOR_ROWS)  # noqa: SLF001
            self._multiply: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001

    def __call__(self, x: Tensor, lora: Additions | None = None) -> Tensor:
        y = self._product(x)
        if lora is not None:
            lora.add(self.name, x, y)
        return y

    def _product(self, x: Tensor) -> Tensor:
        if isinstance(self.weight, NativeWeight):
            return self.weight.product(x, self.bias)
        if not self.is_packed:
            return functional.linear(x, self.weight, self.bias)
        if x.shape[0] == 1:
            return self._multiply(x.expand(2, -1).contiguous(), self.weight, self.bias, "none", [], "")[:1]
        return self._multiply(x, self.weight, self.bias, "none", [], "")


def _is_for_onednn(weight: Tensor | NativeWeight) -> bool:
    if isinstance(weight, NativeWeight):
        return False
    has_mkldnn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_mkldnn and weight.device.type == "cpu" and weight.dtype in PACKABLE


@contextmanager
def alike_allocations() -> Iterator[None]:
    """Make every large allocation inside start at the same offset in its page, as `share_packed` needs.

    Afterwards large temporaries come from the heap, which keeps what they leave: fresh pages for each cost more than
    the arithmetic on them.
    """
    libc = ctypes.CDLL(None)
    libc.malloc_trim(0)
    libc.mallopt(M_MMAP_THRESHOLD, 128 << 10)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def share_packed(linears: Iterable[Linear], path: Path) -> int:
    """Back the packed weights by `path`, written first if absent. Returns how many bytes are now shared.

    A weight that was not allocated alike (see `alike_allocations`), or whose bytes in the file differ (another CPU,
    another oneDNN), simply stays private.
    """
    buffers = [
        (int(torch.ops.mkldnn.data_ptr(linear.weight)), int(torch.ops.mkldnn._nbytes(linear.weight)))  # noqa: SLF001
        for linear in linears
        if linear.is_packed
    ]
    offsets = [START_IN_PAGE]
    for _, num_bytes in buffers:
        offsets.append(-(-(offsets[-1] + num_bytes) // PAGE) * PAGE + START_IN_PAGE)
    if not path.exists():
        _write(buffers, offsets, path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
        return sum(
            _map_over(file.fileno(), content, offset, address, num_bytes)
            for offset, (address, num_bytes) in zip(offsets, buffers, strict=False)
            if address % PAGE == START_IN_PAGE
        )


def _write(buffers: list[tuple[int, int]], offsets: list[int], path: Path) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        for offset, (address, num_bytes) in zip(offsets, buffers, strict=False):
            file.seek(offset)
            file.write((ctypes.c_char * num_bytes).from_address(address))
    partial.rename(path)


def _map_over(fd: int, content: mmap.mmap, offset: int, address: int, num_bytes: int) -> int:
    """Replace the whole pages inside the buffer by the file's; returns the bytes replaced, 0 if they are unlike."""
    first = -(-address // PAGE) * PAGE
    length = (address + num_bytes) // PAGE * PAGE - first
    with memoryview(content)[offset : offset + num_bytes] as view:
        if view != memoryview((ctypes.c_char * num_bytes).from_address(address)).cast("B"):
            logger.warning("A packed weight differs from the shared file; this replica keeps a private copy.")
            return 0
    if length <= 0:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    # A private, writable mapping of a file behaves like the ordinary memory it replaces (free() may write into it);
    # pages that nobody writes are the page cache's own, shared with every process that maps them.
    map_fixed = 0x10
    mapped = libc.mmap(
        first, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | map_fixed, fd, offset + first - address
    )
    assert mapped == first, f"mmap over a packed weight failed: errno {ctypes.get_errno()}"
    return length
