"""The whole path with the default model: the stock `openai` client, HAProxy, two replicas, metrics of both."""

from __future__ import annotations

import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from service.bench.serving import command_of, descendants
from tests.fleet.server_process import STOP_DEADLINE_S, ServerProcess, eventually
from tests.raw_http import post_bytes

pytestmark = pytest.mark.cluster

MODEL = "smollm2-135m-instruct"
NUM_IMPATIENT = 8
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=STOP_DEADLINE_S)


def metric(server: ServerProcess, name: str) -> float:
    """The sum over a family's series that start with `name`."""
    with server.client() as client:
        text = client.get("/metrics").text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def replicas_of(server: ServerProcess) -> list[int]:
    return [pid for pid in descendants(server.process.pid) if "ServeReplica:headcount" in command_of(pid)]


def test_a_real_model_answers(client: openai.OpenAI) -> None:
    """A greedy chat answer from real weights is the right one, with its usage."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        max_tokens=20,
    )
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_is_the_same_text_in_pieces(client: openai.OpenAI) -> None:
    """Streamed deltas concatenate to the whole answer, and usage comes last."""
    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "The capital of France is Paris."
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 3
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 5


def test_completions_with_logprobs_and_several_choices(client: openai.OpenAI) -> None:
    """`n` choices with a seed are reproducible, and log probabilities line up with the tokens."""

    def ask() -> openai.types.Completion:
        return client.completions.create(
            model=MODEL, prompt="Once upon a time", max_tokens=8, n=3, seed=7, temperature=0.8, logprobs=2
        )

    first, second = ask(), ask()
    assert [choice.text for choice in first.choices] == [choice.text for choice in second.choices]
    assert len({choice.text for choice in first.choices}) > 1
    for choice in first.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.tokens is not None
        assert "".join(choice.logprobs.tokens) == choice.text
        assert all(logprob <= 0 for logprob in choice.logprobs.token_logprobs or [])


@pytest.mark.parametrize(
    ("arguments", "error", "code"),
    [
        ({"model": "other"}, openai.NotFoundError, "model_not_found"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "context_length_exceeded"),
        ({"temperature": 9.0}, openai.BadRequestError, None),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, None),
    ],
)
def test_errors_are_the_ones_clients_know(
    client: openai.OpenAI, arguments: dict[str, object], error: type[openai.APIStatusError], code: str | None
) -> None:
    """The client raises its own exception types, with our request id and a code it can match on."""
    with pytest.raises(error) as caught:
        client.chat.completions.create(**({"model": MODEL, "messages": QUESTION} | arguments))  # type: ignore[call-overload]
    assert caught.value.request_id
    body = caught.value.response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    if code is not None:
        assert body["code"] == code


def test_greedy_tokens_are_the_same_alone_and_in_a_crowd(client: openai.OpenAI) -> None:
    """The text of a greedy request does not change when fifteen others run beside it, on either replica."""
    prompts = [f"Question {i}: tell me about the number {i}." for i in range(16)]

    def ask(prompt: str) -> str:
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": prompt}]
        answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=24)
        return answer.choices[0].message.content or ""

    with ThreadPoolExecutor(16) as pool:
        crowded = list(pool.map(ask, prompts))
    assert crowded == [ask(prompt) for prompt in prompts]


def test_a_client_that_leaves_frees_its_sequence(server: ServerProcess) -> None:
    """When the reader of a stream closes its connection, the running sequence is aborted and its blocks are free."""
    body = {"prompt": "Tell me everything.", "max_tokens": 4000, "min_tokens": 4000, "stream": True}
    with server.client() as client, client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        lines = response.iter_lines()  # an iterator that nobody holds closes the response
        next(lines)
        eventually(lambda: metric(server, "vllm:num_requests_running") == 1)
    eventually(lambda: metric(server, "vllm:num_requests_running") == 0)
    eventually(lambda: metric(server, "vllm:kv_cache_usage_perc") == 0)


def test_clients_that_give_up_on_whole_answers_free_their_sequences(server: ServerProcess) -> None:
    """Nothing was written to them yet: HAProxy must notice that they have closed their connections."""
    request = post_bytes("/v1/completions", {"prompt": "Tell me everything.", "max_tokens": 4000, "min_tokens": 4000})
    with ExitStack() as stack:
        for _ in range(NUM_IMPATIENT):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port))).sendall(request)
        eventually(lambda: metric(server, "vllm:num_requests_running") == NUM_IMPATIENT)
    eventually(lambda: metric(server, "vllm:num_requests_running") == 0)


def test_metrics_of_both_replicas_add_up_and_survive_one(server: ServerProcess, client: openai.OpenAI) -> None:
    """Any replica reports the whole node; a killed one is replaced, its counts stay, and no request fails meanwhile."""

    def generate() -> int:
        answer = client.completions.create(
            model=MODEL, prompt="One two three", max_tokens=5, extra_body={"ignore_eos": True}
        )
        assert answer.usage is not None
        return answer.usage.completion_tokens

    before = metric(server, "vllm:generation_tokens_total")
    assert sum(generate() for _ in range(8)) == 40
    eventually(lambda: metric(server, "vllm:generation_tokens_total") == before + 40)

    assert len(replicas_of(server)) == 2
    os.kill(replicas_of(server)[0], signal.SIGKILL)

    assert sum(generate() for _ in range(8)) == 40
    eventually(lambda: metric(server, "vllm:generation_tokens_total") == before + 80)
    eventually(
        lambda: (
            len([pid for pid in descendants(server.process.pid) if "ServeReplica:headcount" in command_of(pid)]) == 2
        )
    )


def test_request_lines_are_json_without_prompts(server: ServerProcess, client: openai.OpenAI) -> None:
    """Each finished request is one JSON line with its id and counts, and nothing of what was said."""
    answer = client.completions.with_raw_response.create(model=MODEL, prompt="zebra crossing", max_tokens=3)
    request_id = answer.headers["x-request-id"]
    eventually(lambda: request_id in server.output)
    (line,) = [line for line in server.lines if request_id in line]
    record = json.loads(line[line.index("{") :])
    assert record["prompt_tokens"] > 0
    assert record["output_tokens"] == 3
    assert record["status"] == 200
    assert record["ttft_s"] > 0
    assert "zebra" not in server.output


def test_documentation_and_operation_routes(server: ServerProcess) -> None:
    """What `make serve` points at is there: docs, metrics, version, models, health; unknown URLs get the envelope."""
    with server.client() as client:
        for path in ("/docs", "/openapi.json", "/metrics", "/version", "/v1/models", f"/v1/models/{MODEL}"):
            assert client.get(path).status_code == 200, path
        assert client.get("/health/live").json()["status"] == "ok"
        assert client.get("/health/ready").json()["status"] == "ok"
        tokenised = client.post("/tokenize", json={"prompt": "abc"}).json()
        rendered = client.post("/v1/chat/completions/render", json={"messages": [{"role": "user", "content": "hi"}]})
        missing = client.post("/v1/nothing", json={})
    assert (len(tokenised["tokens"]), tokenised["max_model_len"]) == (tokenised["count"], 8192)
    assert rendered.json()["token_ids"]
    assert missing.status_code == 404
    assert missing.json()["error"]["message"].startswith("Invalid URL (POST /v1/nothing)")
    assert len(missing.headers.get_list("x-request-id")) == 1
