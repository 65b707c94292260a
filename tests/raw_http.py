"""Bytes to a server and bytes back, without an HTTP client that would mend them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

DEADLINE_S = 180.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back until the connection closed: the status of the first answer (None without one), all bytes."""

    status: int | None
    head: bytes
    body: bytes


async def exchange(port: int, *parts: bytes, half_close: bool = False) -> Answer:
    """Send `parts`, each on its way before the next; then read to the end. A reset is an end too."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = b""
    try:
        async with asyncio.timeout(DEADLINE_S):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.05)  # or the server reads them as one, and the test proves less
            if half_close:
                writer.write_eof()
            while data := await reader.read(1 << 16):
                got += data
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    head, _, body = got.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return Answer(int(words[1]) if len(words) > 1 and words[1].isdigit() else None, head, body)


def post_bytes(path: str, body: object, *, version: str = "1.1", headers: str = "") -> bytes:
    """One request that asks for the connection to be closed."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/{version}\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(content)}\r\n{headers}\r\n"
    )
    return head.encode() + content
