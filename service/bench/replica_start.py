"""One start of all that a replica is without Ray, from the first instruction to the first token: see `cold_start`.

    python -m service.bench.replica_start STARTED_AT    (`time.monotonic` when this process was asked for)

Prints the seconds of each stage as JSON, then keeps what it has in memory until its input ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from service.bench.stopwatch import Point, Stopwatch

STAGES = ("interpreter", "imports", "torch", "tokenizer", "weights", "engine and application", "first token")
PROMPT = "Once upon a time"


def main() -> None:
    watch = Stopwatch(time.monotonic)
    watch.spent_s["interpreter"] = time.monotonic() - float(sys.argv[1])
    with watch.timing("imports"):
        from service import assembly  # noqa: PLC0415 - imports are what is timed
        from service.bench import replica_parts  # noqa: PLC0415
        from service.config import load_settings  # noqa: PLC0415
    with assembly.without_collection(), watch.timing("torch"):  # as where `load_engine` imports it
        from service import model_runner  # noqa: PLC0415
    points = (Point(assembly, "load_tokenizer_of", "tokenizer"), Point(model_runner, "load_runner", "weights"))
    settings = load_settings(flags={}, environment=os.environ).settings
    with watch.watching(points), watch.timing("engine and application"):
        engine = assembly.load_engine(settings)
        backend, _ = replica_parts.ready(engine)
    with watch.timing("first token"):
        asyncio.run(replica_parts.first_token(backend, tuple(engine.tokenizer.encode(PROMPT))))
    print(json.dumps({stage: watch.spent_s[stage] for stage in STAGES}), flush=True)  # noqa: T201
    sys.stdin.read()
    backend.close()


if __name__ == "__main__":
    main()
