"""Who is told of every step."""

from __future__ import annotations

import logging
from collections.abc import Callable

from service.types import StepStats

logger = logging.getLogger(__name__)

Observer = Callable[[StepStats], None]
"""Told of every step, on the engine thread."""


class GuardedObserver:
    """An observer, if any, whose failures are no business of the engine."""

    def __init__(self, observer: Observer | None) -> None:
        self._observer = observer
        self._is_broken = False

    def __call__(self, stats: StepStats) -> None:
        if self._observer is None:
            return
        try:
            self._observer(stats)
        except Exception:
            if not self._is_broken:  # once: there may be fifty steps a second
                logger.exception("the observer of engine steps failed; its figures are wrong from here on")
            self._is_broken = True
