"""What a run of the simulated fleet leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from service.autoscaling.simulator.sequence import SimulatedSequence
from service.autoscaling.simulator.workload import SimulatedRequest, Workload


class Sample(NamedTuple):
    """The fleet at the end of one second, for plots and costs."""

    at: float
    num_replicas: int  # all that are paid for: starting, ready and draining
    num_ready: int
    desired: int
    num_ongoing: int  # held, waiting and running requests


@dataclass(slots=True)
class Outcome:
    """Everything that happened: what reports are computed from. `num_cut` streams broke after their first token;
    `turned_away` could not be begun in time, `num_refused` fit into no cache."""

    workload: Workload
    finished: list[SimulatedSequence] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    num_cut: int = 0
    num_refused: int = 0
    turned_away: list[SimulatedRequest] = field(default_factory=list)
