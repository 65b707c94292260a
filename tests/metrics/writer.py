"""A replica's process: `python -m tests.metrics.writer DIRECTORY NUM_STEPS` records, says so, and lives until its
input ends.

It uses prometheus_client before the directory is configured, as Ray does.
"""

from __future__ import annotations

import sys
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter

from service.metrics.multiprocess import configure
from service.metrics.recorder import Recorder
from tests.metrics.worlds import HTTP, INFO, STEP, TENANT


def main() -> None:
    Counter("someone_elses", "Made before.", registry=CollectorRegistry()).inc()
    configure(Path(sys.argv[1]))
    recorder = Recorder(INFO, CollectorRegistry())
    for _ in range(int(sys.argv[2])):
        recorder.on_step(STEP)
        recorder.on_request(HTTP)
        recorder.on_tenant(TENANT)
    sys.stdout.write("recorded\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
