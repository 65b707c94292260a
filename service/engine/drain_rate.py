"""How fast the engine gets rid of work, for an honest `Retry-After`."""

from __future__ import annotations

from collections import deque

_WINDOW_S = 60.0
_MAX_SAMPLES = 256
_UNKNOWN_S = 1.0  # nothing has finished lately: ask again soon
_LEAST_S = 0.1
_MOST_S = 60.0


class DrainRate:
    """Remembers when the latest sequences finished (monotonic seconds)."""

    def __init__(self) -> None:
        self._finished_at: deque[float] = deque(maxlen=_MAX_SAMPLES)

    def note(self, num_finished: int, at: float) -> None:
        self._finished_at.extend([at] * num_finished)

    def time_for(self, num_sequences: int, now: float) -> float:
        """Seconds, 0.1 to 60, until that many more have finished, if it goes on as in the last minute."""
        recent = [at for at in self._finished_at if at >= now - _WINDOW_S]
        if not recent:
            return _UNKNOWN_S
        seconds_each = (now - recent[0]) / len(recent)
        return min(max(num_sequences * seconds_each, _LEAST_S), _MOST_S)
