"""What goes wrong outside the tester, as one tree; `str(error)` is one sentence for a person that says what to do.

LoadTestError
├── ScenarioError   a scenario, an option, a trace or a result file is malformed or contradicts itself
├── TargetError     the server cannot be tested: not reachable, not allowed, or it does not speak the protocol
└── WorkerError     a worker process of the tester died
"""

from __future__ import annotations


class LoadTestError(Exception):
    """Base of all."""


class ScenarioError(LoadTestError):
    pass


class TargetError(LoadTestError):
    pass


class WorkerError(LoadTestError):
    pass
