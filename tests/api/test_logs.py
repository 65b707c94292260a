"""One line per request, with what an operator needs and without what a user wrote."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from itertools import count

import pytest
from prometheus_client import CollectorRegistry

from service.api.logs import REQUEST_LOGGER, JsonFormatter, TextFormatter
from service.metrics.recorder import Recorder
from service.types import FinishReason, GenerateRequest, TokenEvent
from tests.api.fakes import INFO, MODEL_ID, Script, ScriptedBackend, client_of, in_turn, say, step, timed, tokens, wait


class Ticks:
    """A clock that advances one second per reading."""

    def __init__(self) -> None:
        self._seconds = count(100)

    def __call__(self) -> float:
        return float(next(self._seconds))


async def lines_of(
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    body: object,
    *scripts: Script | Exception,
    **changes: object,
) -> list[dict[str, object]]:
    caplog.set_level(logging.INFO, logger=REQUEST_LOGGER)
    async with client_of(ScriptedBackend(*scripts), clock=Ticks(), **changes) as client:
        await client.request(method, path, json=body)
    return [record.__dict__["fields"] for record in caplog.records if record.name == REQUEST_LOGGER]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_line_of_a_generation(caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    """Tokens, times and reasons; the clock reads 100 at arrival, 101 and 102 at the two events, 103 at the end."""
    body = {"prompt": "a secret", "user": "someone", "stream": stream}
    (line,) = await lines_of(caplog, "POST", "/v1/completions", body, timed)

    assert str(line.pop("request_id")).startswith("req_")
    assert line == {
        "method": "POST",
        "endpoint": "/v1/completions",
        "model": MODEL_ID,
        "status": 200,
        "error": None,
        "client_disconnected": False,
        "e2e_s": 3.0,
        "prompt_tokens": 9,
        "output_tokens": 3,
        "cached_tokens": 1,
        "queue_s": 0.5,
        "ttft_s": 1.0,
        "tpot_s": 0.5,
        "finish_reasons": ["length"],
    }


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "/v1/completions", {}, ("/v1/completions", 400, "invalid_value")),
        ("POST", "/v1/completions", {"prompt": "a", "model": "x"}, ("/v1/completions", 404, "model_not_found")),
        ("POST", "/nowhere/secret", {}, ("unknown", 404, "unknown_url")),
        ("GET", "/v1/models", None, ("/v1/models", 200, None)),
    ],
)
async def test_the_line_of_any_other_request(
    caplog: pytest.LogCaptureFixture, method: str, path: str, body: object, expected: tuple[str, int, str | None]
) -> None:
    """The route and the code of the error; a URL that is no route is not repeated."""
    (line,) = await lines_of(caplog, method, path, body)

    assert (line["endpoint"], line["status"], line["error"]) == expected


async def test_a_stream_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """Its status is 200, its error is in the line, and the reason is in the log beside it."""

    def broken(request: GenerateRequest) -> Iterator[TokenEvent]:
        yield TokenEvent(request_id=request.request_id, finish_reason=FinishReason.ERROR, error="NaN in layer 3")

    body = {"prompt": "a", "stream": True}
    (line,) = await lines_of(caplog, "POST", "/v1/completions", body, in_turn(tokens(b"a"), broken))

    assert (line["status"], line["error"]) == (200, "engine_error")
    assert "NaN in layer 3" in caplog.text


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/metrics"])
async def test_probes_are_silent(caplog: pytest.LogCaptureFixture, path: str) -> None:
    """What asks every few seconds does not fill the log."""
    assert await lines_of(caplog, "GET", path, None) == []


async def test_prompts_are_logged_on_request_only(caplog: pytest.LogCaptureFixture) -> None:
    """With the setting the prompt is in the line as the model sees it."""
    (line,) = await lines_of(caplog, "POST", "/v1/completions", {"prompt": "a"}, log_prompts=True)

    assert line["prompts"] == ["<|begin|>a"]


async def test_time_per_token_of_several_choices(caplog: pytest.LogCaptureFixture) -> None:
    """Two choices of three tokens each, six seconds from first to last event: each had two gaps in five seconds."""
    script = in_turn(
        *(lambda request, index=index: [step(request, [65], index=index)] for index in (0, 1) for _ in range(2)),
        *(
            lambda request, index=index: [step(request, [65], index=index, finish=FinishReason.LENGTH)]
            for index in (0, 1)
        ),
    )
    (line,) = await lines_of(caplog, "POST", "/v1/completions", {"prompt": "a", "n": 2}, script)

    assert line["tpot_s"] == 2.5


def logged(formatter: logging.Formatter, fields: dict[str, object]) -> str:
    message = {"name": REQUEST_LOGGER, "levelname": "INFO", "msg": "request finished", "fields": fields}
    return formatter.format(logging.makeLogRecord(message))


def test_json_lines() -> None:
    """One object on one line."""
    line = logged(JsonFormatter(), {"status": 200, "error": None, "finish_reasons": ["a\nb"]})

    assert "\n" not in line
    parsed = json.loads(line)
    assert parsed.pop("time").endswith("+00:00")
    assert parsed == {
        "level": "info",
        "logger": "headcount.request",
        "message": "request finished",
        "status": 200,
        "error": None,
        "finish_reasons": ["a\nb"],
    }


def test_text_lines() -> None:
    """What is unknown is left out."""
    line = logged(TextFormatter(), {"status": 200, "error": None, "finish_reasons": []})

    assert line.endswith(" INFO headcount.request: request finished status=200")


async def test_metrics_of_requests() -> None:
    """HTTP requests are counted by route, and the choices of admitted generations by how they ended."""
    registry = CollectorRegistry()
    backend = ScriptedBackend(in_turn(say("abc"), say("d", index=1)), in_turn(say("abc"), say(b"", index=1)), wait)
    async with client_of(backend, recorder=Recorder(INFO, registry)) as client:
        await client.post("/v1/completions", json={"prompt": "a", "n": 2, "max_tokens": 7})
        await client.post("/v1/completions", json={"prompt": "a", "n": 0})
    labels = {"model_name": MODEL_ID, "engine": "0"}

    def value(name: str, **more: str) -> float | None:
        return registry.get_sample_value(name, more)

    assert value("http_requests_total", handler="/v1/completions", method="POST", status="2xx") == 1
    assert value("http_requests_total", handler="/v1/completions", method="POST", status="4xx") == 1
    assert value("http_request_size_bytes_sum", handler="/v1/completions") is not None
    assert value("vllm:request_success_total", **labels, finished_reason="stop") == 2
    assert value("vllm:request_params_n_sum", **labels) == 2
    assert value("vllm:request_params_max_tokens_sum", **labels) == 7
    assert value("vllm:request_max_num_generation_tokens_sum", **labels) == 4
