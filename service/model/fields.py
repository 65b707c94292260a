"""Reading a model's own description (config.json, GGUF metadata): outside input, so values are checked when read."""

from __future__ import annotations

import math
from collections.abc import Mapping

from service.errors import ModelError

MAX_INTEGER = 1 << 24  # more than any true size: a hostile file may not ask for absurd allocations


class Fields:
    """Typed access to a mapping of untrusted values. Every method raises ModelError naming the field and `origin`.

    A field that is absent or null takes `default`; without a default it is required.
    """

    def __init__(self, values: Mapping[str, object], origin: str) -> None:
        self._values = values
        self._origin = origin

    def get(self, name: str) -> object:
        """The value as it stands; None if absent."""
        return self._values.get(name)

    def names(self) -> frozenset[str]:
        return frozenset(self._values)

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive integer of at most MAX_INTEGER."""
        value = self._value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_INTEGER:
            raise ModelError(f"{self._origin}: {name} must be an integer from 1 to {MAX_INTEGER}, but is {value!r}.")
        return value

    def optional_integer(self, name: str) -> int | None:
        return None if self.get(name) is None else self.integer(name)

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self._value(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ModelError(f"{self._origin}: {name} must be a number above 0, but is {value!r}.")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        return None if self.get(name) is None else self.number(name)

    def flag(self, name: str, default: bool) -> bool:
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise ModelError(f"{self._origin}: {name} must be true or false, but is {value!r}.")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._value(name, default)
        if not isinstance(value, str):
            raise ModelError(f"{self._origin}: {name} must be a string, but is {value!r}.")
        return value

    def _value(self, name: str, default: object) -> object:
        value = self.get(name)
        if value is None:
            value = default
        if value is None:
            raise ModelError(f"{self._origin}: {name} is missing.")
        return value
