"""The autoscaler at work: turns what Serve's controller sees into a snapshot, asks the law, and keeps the books.

An actor of its own (see `brain_link`), so that Serve's control loop never waits for it; nothing here needs Ray.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from service.autoscaling.config import AutoscalingConfig
from service.autoscaling.cost_meter import CostMeter
from service.autoscaling.memory import Memory
from service.autoscaling.policy import decide
from service.autoscaling.record import DecisionLog, DecisionRecord, Source
from service.autoscaling.report import Report
from service.autoscaling.signals import EngineLimits, IngressStats, Replica, ReplicaState, Snapshot
from service.autoscaling.slo import Slo
from service.config import Settings, load_settings
from service.errors import ConfigError
from service.fleet.observation import Answer, Observation

logger = logging.getLogger(__name__)

NUM_START_TIMES = 16
REPLICA_S_PER_MISS = 30.0  # the price of a miss where none is set
SECONDS_PER_HOUR = 3600.0
WAKING = "0 → 1: a request waits, and Serve starts the first replica for it without asking."


class Brain:
    """`variables` are the settings as `HEADCOUNT_*`. Everything learned is on disk, and read back after a restart."""

    def __init__(self, variables: Mapping[str, str], clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._begin(load_settings(flags={}, environment=variables).settings)

    def configure(self, variables: Mapping[str, str]) -> None:
        """Go on under these settings; what has been learned stays, as after a restart."""
        settings = load_settings(flags={}, environment=variables).settings
        if settings != self._settings:
            self.close()
            self._begin(settings)

    def _begin(self, settings: Settings) -> None:
        self._settings = settings
        self._config = autoscaling_config(settings)
        self._directory = state_directory_of(self._settings)
        self._log = DecisionLog(self._directory)
        self._limits = EngineLimits()
        self._memory = Memory.fresh(self._config)
        self._has_learned = False  # anything from a replica, now or in a former life
        self._meter = CostMeter()
        self._start_times_s: tuple[float, ...] = ()
        self._number = 0
        self._num_fallbacks = 0
        self._snapshot: Snapshot | None = None
        self._load()

    def observe(self, observation: Observation) -> Answer:
        """Decide on what was seen, and put it on record."""
        snapshot = self._take(observation)
        if observation.target > 0 and self._was_empty():
            self._record(observation.at, 0, 1, WAKING, {}, "serve", None)
        decision = decide(snapshot, self._config, self._memory)
        self._memory, self._snapshot = decision.memory, snapshot
        self._num_fallbacks += observation.num_fallbacks
        current = len(snapshot.replicas)
        self._meter = self._meter.observe(observation.at, current, decision.desired)
        self._record(observation.at, current, decision.desired, decision.reason, decision.terms, "brain", snapshot)
        self._save()
        return Answer(
            at=observation.at, target=observation.target, desired=decision.desired, batch=decision.terms["batch"]
        )

    def decisions(self, since: int = 0, limit: int = 100, only_changes: bool = False) -> list[dict[str, Any]]:
        """See `DecisionLog.since`."""
        return [record.to_dict() for record in self._log.since(since, limit, only_changes=only_changes)]

    def status(self) -> dict[str, Any]:
        """The last decision with all its inputs, and what the fleet has cost: JSON."""
        last, snapshot = self._log.last, self._snapshot
        return {
            "age_s": None if last is None else max(0.0, self._clock() - last.at),
            "decision": None if last is None else last.to_dict(),
            "num_decisions": self._number,
            "num_fallbacks": self._num_fallbacks,
            "replicas": [] if snapshot is None else [asdict(each) for each in snapshot.replicas],
            "num_held": 0 if snapshot is None or snapshot.ingress is None else snapshot.ingress.num_held,
            "start_times_s": self._start_times_s,
            "cost": asdict(self._meter) | {"saved_replica_s": self._meter.saved_replica_s},
        }

    def num_ready(self) -> int:
        """Replicas that run, as of the last observation."""
        replicas = () if self._snapshot is None else self._snapshot.replicas
        return sum(replica.state is ReplicaState.READY for replica in replicas)

    def close(self) -> None:
        """Let go of the files."""
        self._log.close()

    def _was_empty(self) -> bool:
        last = self._log.last
        return last is not None and last.current == last.desired == 0

    def _record(
        self,
        at: float,
        current: int,
        desired: int,
        reason: str,
        terms: dict[str, float],
        source: Source,
        snapshot: Snapshot | None,
    ) -> None:
        self._number += 1
        record = DecisionRecord(
            number=self._number, at=at, current=current, desired=desired, reason=reason, terms=terms, source=source
        )
        self._log.append(record, snapshot)

    def _take(self, observation: Observation) -> Snapshot:
        """Observation to snapshot; what Serve says of its replicas, without their own word, is that they run."""
        reports = {key: Report.of_numbers(numbers) for key, numbers in observation.numbers.items()}
        known = [report for report in reports.values() if report is not None]
        if known:
            self._limits = known[0].limits
            if not self._has_learned:
                self._config = replace(self._config, cost_prior=known[0].cost_prior)
                self._memory = Memory.fresh(self._config)
            self._has_learned = True
        self._start_times_s = (*self._start_times_s, *observation.start_times_s)[-NUM_START_TIMES:]
        ready = [
            Replica(
                replica_id=replica_id,
                state=ReplicaState.READY,
                since=observation.at,
                stats=report.stats if (report := reports.get(replica_id)) is not None else None,
            )
            for replica_id in observation.running
        ]
        starting = [
            Replica(replica_id=f"starting-{index}", state=ReplicaState.STARTING, since=since)
            for index, since in enumerate(observation.starting_since)
        ]
        return Snapshot(
            at=observation.at,
            replicas=(*ready, *starting),
            ingress=self._ingress(observation),
            limits=self._limits,
            start_times_s=self._start_times_s,
        )

    def _ingress(self, observation: Observation) -> IngressStats:
        """What is held has told nobody its length: it is taken to be like the others. Serve's count is None where
        requests go to replicas directly: then none is held."""
        num_held = round(observation.num_held or 0.0)
        mix = self._memory.mixture.mix
        return IngressStats(
            at=observation.at, num_held=num_held, num_held_prompt_tokens=round(num_held * mix.num_prompt_tokens)
        )

    def _save(self) -> None:
        """Each time: what is counted must not fall when the brain is started again."""
        values = {
            "memory": self._memory.to_json(),
            "meter": asdict(self._meter),
            "start_times_s": self._start_times_s,
            "number": self._number,
            "num_fallbacks": self._num_fallbacks,
        }
        draft = self._directory / "memory.draft"
        try:
            draft.write_text(json.dumps(values))
            draft.replace(self._directory / "memory.json")
        except OSError as error:  # a full disk must not stop the fleet from following its load
            logger.warning("what the autoscaler has learned could not be kept: %s", error)

    def _load(self) -> None:
        """Nothing that stands in the file may keep the fleet from being scaled: what cannot be read is learned anew."""
        path = self._directory / "memory.json"
        try:
            values = json.loads(path.read_text())
            self._meter = CostMeter(**values["meter"])
            self._start_times_s = tuple(float(each) for each in values["start_times_s"])
            self._number, self._num_fallbacks = int(values["number"]), int(values["num_fallbacks"])
            self._memory = Memory.from_json(values["memory"], self._config)
            self._has_learned = True
        except FileNotFoundError:
            return
        except (ConfigError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is not used: %s", path, error)


def autoscaling_config(settings: Settings) -> AutoscalingConfig:
    """What the law is given; its priors hold until replicas have reported."""
    price = REPLICA_S_PER_MISS
    if settings.price_per_miss is not None:
        price = settings.price_per_miss / settings.price_per_replica_hour * SECONDS_PER_HOUR
    return AutoscalingConfig(
        slo=slo_of(settings),
        replica_s_per_miss=price,
        min_replicas=settings.min_replicas,
        max_replicas=settings.max_replicas,
        refuses_late=settings.longest_wait_s <= settings.slo_ttft_s,
    )


def slo_of(settings: Settings) -> Slo:
    return Slo(ttft_s=settings.slo_ttft_s, tpot_s=settings.slo_tpot_s)


def state_directory_of(settings: Settings) -> Path:
    """One for each service on this machine: its model and its port."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", settings.model_id)
    return settings.state_path / f"{name}-{settings.port}"
