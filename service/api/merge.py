"""Several sources of pieces as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from service.api.choice import Piece


async def merge(sources: Sequence[AsyncGenerator[Piece, None]]) -> AsyncGenerator[Piece, None]:
    """The pieces of all sources as they come. A source runs at most one piece ahead of the reader."""
    arrived: asyncio.Queue[Piece | Exception | None] = asyncio.Queue(maxsize=1)

    async def pump(source: AsyncGenerator[Piece, None]) -> None:
        try:
            async for piece in source:
                await arrived.put(piece)
            await arrived.put(None)
        except Exception as error:  # noqa: BLE001 - raised again where pieces are read
            await arrived.put(error)

    pumps = [asyncio.create_task(pump(source)) for source in sources]
    try:
        num_open = len(pumps)
        while num_open:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
