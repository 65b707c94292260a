"""The OpenAPI document is true: whatever it allows is answered as it says, and never by a failure of ours."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.api.app import create_app
from service.types import FinishReason, GenerateRequest, TokenEvent
from tests.api.fakes import ScriptedBackend, make_state, step
from tests.api.obedient import tool_tokenizer
from tests.api.test_attention import Source as AttentionSource
from tests.api.test_embeddings import Source as EmbeddingSource

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def every_sequence(request: GenerateRequest) -> Iterator[TokenEvent]:
    for index in range(request.n):
        yield step(request, [65], index=index, finish=FinishReason.LENGTH)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_answers_are_those_of_the_document(mode: GenerationMode) -> None:
    """Status, content type and body, for requests that follow it and for requests that do not."""
    state = make_state(
        ScriptedBackend(every_sequence),
        tokenizer=tool_tokenizer(),
        attention=AttentionSource(),
        embedding=EmbeddingSource(),
    )
    document: BaseSchema = schemathesis.openapi.from_asgi("/openapi.json", create_app(state))
    if mode is GenerationMode.NEGATIVE:
        document = document.include(method="POST")  # a request without a body follows the document
    for operation in map(operator.methodcaller("ok"), document.get_all_operations()):

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=20, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        def check(case: Any) -> None:
            case.call_and_validate(checks=CHECKS)

        check()
