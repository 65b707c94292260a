"""Bytes that no HTTP client would send, and what an HTTP server may answer to them."""

from __future__ import annotations

from dataclasses import dataclass

from tests.raw_http import post_bytes

BODY = {"prompt": "a", "max_tokens": 2}
GOOD = post_bytes("/v1/completions", BODY)
_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
_CONTENT = GOOD.partition(b"\r\n\r\n")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`parts` are sent one after the other. `statuses` are the right ones of the first answer; None is an end without
    one. `num_served` completions come of it at most."""

    parts: tuple[bytes, ...]
    statuses: frozenset[int | None]
    num_served: int = 0
    half_close: bool = False


def _case(*parts: bytes, statuses: set[int | None], num_served: int = 0, half_close: bool = False) -> Case:
    return Case(parts=parts, statuses=frozenset(statuses), num_served=num_served, half_close=half_close)


CASES = {
    "no HTTP": _case(b"\x16\x03\x01\x02\x00 hello\r\n\r\n", statuses={400, None}),
    "an empty line and nothing": _case(b"\r\n\r\n", statuses={400, None}, half_close=True),
    "a method that is none": _case(b"P@ST / HTTP/1.1\r\nHost: x\r\n\r\n", statuses={400}),
    "a NUL in a header": _case(_HEAD + b"X: a\0b\r\n\r\n", statuses={400}),
    "a header without a colon": _case(_HEAD + b"nonsense\r\n\r\n", statuses={400}),
    "two lengths": _case(_HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", statuses={400}),
    "a negative length": _case(_HEAD + b"Content-Length: -1\r\n\r\n", statuses={400}),
    "a length beyond all bounds": _case(_HEAD + b"Content-Length: 99999999999999999999\r\n\r\n", statuses={400}),
    "a length above the limit": _case(
        _HEAD + b"Content-Length: 99999999\r\n\r\n" + b"a" * 5_000_000, statuses={413, None}, half_close=True
    ),
    "a chunk without a size": _case(_HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", statuses={400, None}),
    "chunks and a length": _case(
        _HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", statuses={400}
    ),
    "a transfer coding that is none": _case(
        _HEAD + b"Transfer-Encoding: zip\r\n\r\nabc", statuses={400, 411, 422, 501}
    ),
    "a body in chunks": _case(
        _HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(_CONTENT) + _CONTENT + b"\r\n0\r\n\r\n",
        statuses={200},
        num_served=1,
    ),
    "a body longer than its length": _case(GOOD, b"x" * 100, statuses={200}, num_served=1),
    "a body shorter than its length": _case(GOOD[:-3], statuses={400, None}, half_close=True),
    "a client that asks first": _case(
        _HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(_CONTENT),
        _CONTENT,
        statuses={100},
        num_served=1,
    ),
    "a byte at a time": _case(*[GOOD[i : i + 1] for i in range(20)], GOOD[20:], statuses={200}, num_served=1),
    "HTTP/1.0": _case(post_bytes("/v1/completions", BODY, version="1.0"), statuses={200}, num_served=1),
    "HTTP/1.7": _case(GOOD.replace(b"HTTP/1.1", b"HTTP/1.7"), statuses={200, 400, 505}, num_served=1),
    "several at once": _case(GOOD.replace(b"Connection: close\r\n", b"") * 2 + GOOD, statuses={200}, num_served=3),
    "a path that climbs": _case(
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", statuses={404}
    ),
    "a path with a NUL": _case(b"GET /%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", statuses={404}),
}
