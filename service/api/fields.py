"""The request fields that chat and text completions share, and how they become `SamplingParams`.

Every field that OpenAI documents is honoured or refused by name; null always means the default. Ranges are not checked
here but once, where `SamplingParams` is made; token ids where the vocabulary is known, at admission.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from service.api.body import UNSUPPORTED
from service.api.choice import TextRules
from service.api.claim import checked_timeout
from service.api.render import StreamUsage
from service.errors import InvalidRequestError
from service.types import Claim, SamplingParams

Int = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Unsupported = Mapping[str, tuple[object, ...]]

MAX_STOPS = 16
MAX_STOP_CHARS = 1024
_MAX_DIGITS = 10


def kind_of_text(value: object) -> str | None:
    return "<text>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None


StopString = Annotated[str, Field(max_length=MAX_STOP_CHARS)]
Stop = Annotated[
    Annotated[StopString, Tag("<text>")]
    | Annotated[list[StopString], Field(max_length=MAX_STOPS, fail_fast=True), Tag("<list>")],
    Discriminator(
        kind_of_text, custom_error_type="stop", custom_error_message="expected a string or an array of strings"
    ),
]


class StrictModel(BaseModel):
    """Types are not coerced, NaN and infinity are no numbers, unknown fields are errors.

    `unsupported` maps fields that are known but not implemented to the values, beside null, that ask for nothing.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)
    unsupported: ClassVar[Unsupported] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: object) -> object:
        if not isinstance(data, dict) or cls.unsupported.keys().isdisjoint(data):
            return data
        for name in cls.unsupported.keys() & data.keys():
            if not any(_same_json(data[name], neutral) for neutral in (None, *cls.unsupported[name])):
                raise PydanticCustomError(UNSUPPORTED, "it is not supported", {"field": name})
        return {name: value for name, value in data.items() if name not in cls.unsupported}


class StreamOptions(StrictModel):
    unsupported: ClassVar[Unsupported] = {"include_obfuscation": (False,)}

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationFields(StrictModel):
    """Fields of both endpoints."""

    model: str | None = Field(None, description="The model to use; by default the one that is served here.")
    stream: bool | None = Field(None, description="Send tokens as server-sent events while they are generated.")
    stream_options: StreamOptions | None = None
    max_tokens: Int | None = Field(None, description="Most tokens to generate, for each choice.")
    n: Int | None = Field(None, description="How many choices to generate for each prompt (1-128).")
    temperature: float | None = Field(None, description="0 is greedy; up to 2. Default 1.")
    top_p: float | None = Field(
        None, description="Sample from the fewest tokens with this probability mass. Default 1."
    )
    top_k: Int | None = Field(None, description="Sample from the k most likely tokens. 0 or -1 (default) is off.")
    min_p: float | None = Field(
        None, description="Leave out tokens less likely than this share of the most likely one."
    )
    presence_penalty: float | None = Field(None, description="-2 to 2, once for each token generated before.")
    frequency_penalty: float | None = Field(None, description="-2 to 2, for each time the token was generated before.")
    repetition_penalty: float | None = Field(None, description="0.01 to 10, for tokens of prompt or output. 1 is off.")
    logit_bias: dict[str, float] | None = Field(None, description="Token id to a number from -100 to 100.")
    seed: Int | None = Field(None, description="The same seed and request give the same tokens.")
    stop: Stop | None = Field(None, description="Up to 16 strings that end the output and are not part of it.")
    stop_token_ids: Annotated[list[Int], Field(fail_fast=True)] | None = None
    min_tokens: Int | None = Field(None, description="Neither end-of-sequence nor stop counts before so many tokens.")
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    add_special_tokens: bool | None = None
    timeout: float | None = Field(None, description="Seconds from the request's arrival to the end of its answer.")
    user: str | None = Field(None, description="Accepted and not used.")

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options is only allowed when stream is true.", param="stream_options")
        return self

    def claim(self, arrival_at: float) -> Claim:
        """Until when the answer is wanted. Raises InvalidRequestError."""
        if self.timeout is None:
            return Claim()
        return Claim(deadline_at=arrival_at + checked_timeout(self.timeout, "timeout"))

    @property
    def stream_usage(self) -> StreamUsage:
        options = self.stream_options or StreamOptions()
        if options.continuous_usage_stats:
            return StreamUsage.EVERY
        return StreamUsage.LAST if options.include_usage else StreamUsage.NONE

    def sampling(self, as_sent: Mapping[str, str], **derived: int | None) -> SamplingParams:
        """The sampling parameters; `derived` are those that depend on the prompt or the endpoint.

        Fields that were not given are left to the defaults of `SamplingParams`. `as_sent` maps a parameter to the field
        that it came from where the names differ. Raises InvalidRequestError.
        """
        names = SamplingParams.__dataclass_fields__.keys() & type(self).model_fields.keys()
        given: dict[str, Any] = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.top_k == -1:
            given["top_k"] = 0
        if self.logit_bias is not None:
            given["logit_bias"] = tuple((_token_id(key), bias) for key, bias in self.logit_bias.items())
        if self.stop_token_ids is not None:
            given["stop_token_ids"] = frozenset(self.stop_token_ids)
        try:
            return SamplingParams(**{**given, **derived})
        except InvalidRequestError as error:
            raise _renamed(error, as_sent) from None

    def text_rules(self, *, continues_text: bool, shown_token_ids: frozenset[int] = frozenset()) -> TextRules:
        stop = [] if self.stop is None else self.stop
        return TextRules(
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            min_tokens=self.min_tokens or 0,
            include_stop=bool(self.include_stop_str_in_output),
            continues_text=continues_text,
            shown_token_ids=shown_token_ids,
        )


def _renamed(error: InvalidRequestError, as_sent: Mapping[str, str]) -> InvalidRequestError:
    if error.param is None or error.param not in as_sent:
        return error
    name = as_sent[error.param]
    return InvalidRequestError(str(error).replace(error.param, name), param=name)


def _same_json(left: object, right: object) -> bool:
    return type(left) is type(right) and left == right


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= _MAX_DIGITS):
        raise InvalidRequestError("The keys of logit_bias must be token ids.", param="logit_bias")
    return int(key)
