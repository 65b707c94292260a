"""Other APIs' requests as chat requests: what goes wrong later is told in the words of the client's own API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from pydantic_core import PydanticCustomError

from service.errors import ContextLengthError, InvalidRequestError


@contextmanager
def as_sent(names: Mapping[str, str]) -> Iterator[None]:
    """Call the fields at fault by the names that they have in the client's API: `names` maps parts of paths to them."""
    try:
        yield
    except (InvalidRequestError, ContextLengthError) as error:
        if error.param is None:
            raise
        path = error.param
        for ours, theirs in names.items():
            path = path.replace(ours, theirs)
        raise type(error)(str(error).replace(error.param, path), param=path) from None


def kind_among(*known: str, default: str | None = None) -> Callable[[object], str | None]:
    """What a `Discriminator` needs to tell the members of a union by their `type`; `default` where there is none."""

    def kind_of(value: object) -> str | None:
        kind = value.get("type", default) if isinstance(value, dict) else None
        return f"<{kind}>" if kind in known else None

    return kind_of


def only(*known: str) -> Callable[[object], object]:
    """A validator of a `type` field that says plainly which types there are; others are features, not mistakes."""

    def check(value: object) -> object:
        if isinstance(value, str) and value not in known:
            raise PydanticCustomError(
                "type", "{value} is not supported, only {known}", {"value": value[:50], "known": " and ".join(known)}
            )
        return value

    return check
