"""Chat messages to a prompt, by the template that comes with the model.

Templates are programs of whoever made the model, fed with whatever a client sends: they run in Jinja's immutable
sandbox with a budget of work (`service.text.bounded_template`), and every way they can fail is the client's 400, never
our 500. The environment is that of `transformers.apply_chat_template`, which templates are written for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from jinja2 import TemplateError, nodes
from jinja2.exceptions import TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from service.errors import InvalidRequestError, UnsupportedModelError
from service.text.bounded_template import BoundedEnvironment


def local_now() -> datetime:
    return datetime.now(tz=UTC).astimezone()


class ChatTemplate:
    """A compiled template; `render` may be called from several threads.

    `special_tokens` are the variables that a template knows them by (`bos_token`, `eos_token`, …). `now` is the wall
    clock for templates that print a date. Raises UnsupportedModelError when `source` is no template.
    """

    def __init__(
        self, source: str, *, special_tokens: Mapping[str, str] | None = None, now: Callable[[], datetime] = local_now
    ) -> None:
        self._special_tokens = dict(special_tokens or {})
        environment = _environment(now)
        try:
            code = environment.compile(environment.bound(environment.parse(source)))
        except TemplateError as error:
            raise UnsupportedModelError(f"The model's chat template cannot be compiled: {error}.") from error
        self.source = source
        self._environment = environment
        self._template = environment.template_class.from_code(environment, code, environment.globals)

    def render(
        self, messages: Sequence[Mapping[str, object]], *, add_generation_prompt: bool = True, **extra: object
    ) -> str:
        """The prompt for `messages`, special tokens spelled out. `extra` are further variables of the template
        (`tools`, …).

        Raises InvalidRequestError with the template's own words when it rejects the messages or cannot be run on them.
        """
        variables = {
            **extra,
            **self._special_tokens,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            with self._environment.rendering():
                return self._template.render(variables)
        except Exception as error:
            raise InvalidRequestError(
                f"The model's chat template cannot render these messages: {error}", param="messages"
            ) from error


def _environment(now: Callable[[], datetime]) -> BoundedEnvironment:
    environment = BoundedEnvironment(
        filters={"tojson": _to_json},
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[loopcontrols, _GenerationTag],
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: now().strftime(layout)
    return environment


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's part for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(  # the parameters that templates pass; unlike Jinja's own, it escapes neither HTML nor other alphabets
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateRuntimeError(message)
