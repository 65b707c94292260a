"""`POST /v1/chat/completions`: its fields, and how messages become a prompt."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from service.api.body import parse_body
from service.api.budget import completion_budget
from service.api.conversation import Message
from service.api.fields import Int, Unsupported
from service.api.generation import Job
from service.api.render import ChatRenderer, Head, Renderer
from service.api.render_tools import ToolChatRenderer
from service.api.state import ApiState
from service.api.tools import ToolFields, ToolUse, tool_use
from service.errors import InvalidRequestError
from service.types import GenerateRequest, SamplingParams


class ChatRequest(ToolFields):
    """A chat completion."""

    unsupported: ClassVar[Unsupported] = {
        "audio": (),
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "prediction": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": ("in_memory", "in-memory"),
        "reasoning_effort": ("none",),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Int | None = Field(None, description="Most tokens to generate; wins over max_tokens.")
    logprobs: bool | None = Field(None, description="Return the log probability of each generated token.")
    top_logprobs: Int | None = Field(None, description="With so many likely alternatives each (0-20); needs logprobs.")
    add_generation_prompt: bool | None = Field(None, description="Begin the assistant's turn. Default true.")
    continue_final_message: bool | None = Field(None, description="Go on with the text of the last message.")
    metadata: dict[str, str] | None = Field(None, description="Accepted and not used.")
    prompt_cache_key: str | None = Field(None, description="Accepted and not used: prefixes are always shared.")
    safety_identifier: str | None = Field(None, description="Accepted and not used.")

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        for index, message in enumerate(self.messages):
            if message.content is None and not (message.role == "assistant" and message.tool_calls):
                path = f"messages[{index}].content"
                raise InvalidRequestError(f"Missing required parameter: '{path}'.", param=path)
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError("top_logprobs is only allowed when logprobs is true.", param="top_logprobs")
        if self.continue_final_message and self.add_generation_prompt:
            message_text = "continue_final_message and add_generation_prompt exclude each other."
            raise InvalidRequestError(message_text, param="continue_final_message")
        return self


def prepare(state: ApiState, body: bytes, arrival_at: float) -> Job:
    """Parse, render the template, tokenise, compile the grammar of the answer. Slow for long conversations and large
    schemas: run it in a thread. Raises RequestError.
    """
    chat = parse_body(ChatRequest, body)
    answer_id = f"chatcmpl-{uuid.uuid4().hex}"
    head = Head(
        answer_id=answer_id, created=int(state.wall_clock()), model=chat.model or state.model_id, version=state.version
    )
    return job_of(state, chat, answer_id, arrival_at, lambda use: _renderer(state, chat, head, use))


def job_of(
    state: ApiState,
    chat: ChatRequest,
    answer_id: str,
    arrival_at: float,
    renderer: Callable[[ToolUse | None], Renderer],
) -> Job:
    """The job of a conversation, whichever API it came by. Slow, as `prepare`. Raises RequestError."""
    prompt = prompt_of(state, chat)
    use = tool_use(chat, state)
    grammar = chat.output_grammar(state.tokenizer) if use is None else use.grammar
    request = GenerateRequest(
        request_id=answer_id,
        prompt_token_ids=tuple(prompt),
        sampling=_sampling(state, chat, len(prompt)),
        n=1 if chat.n is None else chat.n,
        grammar=grammar,
        adapter=state.adapter_of(chat.model),
        arrival_at=arrival_at,
        claim=chat.claim(arrival_at),
    )
    return Job(
        requests=(request,),
        rules=chat.text_rules(
            continues_text=bool(chat.continue_final_message) or grammar is not None,
            shown_token_ids=frozenset() if use is None else use.shown_token_ids,
        ),
        renderer=renderer(use),
        stream=bool(chat.stream),
    )


def prompt_of(state: ApiState, chat: ChatRequest) -> list[int]:
    """The token ids of a conversation for the model that is asked for. Raises RequestError."""
    state.adapter_of(chat.model)
    return state.tokenizer.encode(_prompt_text(state, chat), add_special_tokens=bool(chat.add_special_tokens))


def _sampling(state: ApiState, chat: ChatRequest, num_prompt_tokens: int) -> SamplingParams:
    limit = "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens"
    max_tokens = completion_budget(
        num_prompt_tokens,
        requested=getattr(chat, limit),
        default=None,
        max_model_len=state.backend.max_model_len,
        param="messages",
    )
    return chat.sampling(
        {"max_tokens": limit, "logprobs": "top_logprobs"},
        max_tokens=max_tokens,
        logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
    )


def _renderer(state: ApiState, chat: ChatRequest, head: Head, use: ToolUse | None) -> ChatRenderer:
    with_logprobs, stream_usage = bool(chat.logprobs), chat.stream_usage
    if use is None:
        return ChatRenderer(head, state.tokenizer, with_logprobs=with_logprobs, stream_usage=stream_usage)
    return ToolChatRenderer(head, state.tokenizer, use, with_logprobs=with_logprobs, stream_usage=stream_usage)


def _prompt_text(state: ApiState, chat: ChatRequest) -> str:
    template = state.tokenizer.chat_template
    if template is None:
        raise InvalidRequestError("This model has no chat template: use /v1/completions.", param="messages")
    messages = [message.for_template() for message in chat.messages]
    tools = chat.for_template()
    if not chat.continue_final_message:
        begins_turn = chat.add_generation_prompt is not False
        return template.render(messages, add_generation_prompt=begins_turn, tools=tools)
    text = template.render(messages, add_generation_prompt=False, tools=tools)
    final = str(messages[-1]["content"])
    begin = text.rfind(final.strip())
    if chat.messages[-1].role != "assistant" or not final.strip() or begin < 0:
        raise InvalidRequestError(
            "continue_final_message needs a last message of the assistant, with text that the template keeps.",
            param="messages",
        )
    return text[:begin] + final.strip()
