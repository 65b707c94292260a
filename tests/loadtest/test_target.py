"""Only servers that may be tested are, and prompts have the length they should."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from loadtest.errors import ScenarioError, TargetError
from loadtest.prompts import WORDS, Prompts, Vocabulary, load_prompts
from loadtest.scenario import parse_scenario
from loadtest.schedule import make_schedule
from loadtest.target import check_host, plain_client, probe
from tests.loadtest.scripted import ROUGH_WORD, TEMPLATE_TOKENS, Reply, ScriptedServer, steady


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "http://localhost:8000/", "http://[::1]:9/v1", "https://127.9.9.9/"]
)
def test_loopback_is_allowed(url: str) -> None:
    """This machine may always be tested; slashes and /v1 are taken off."""
    cleaned = check_host(url, is_other_host_ok=False)

    assert not cleaned.endswith(("/", "/v1"))


def test_other_hosts_need_permission() -> None:
    """Load on another machine must be asked for in so many words."""
    with pytest.raises(TargetError, match="--target-host-ok"):
        check_host("http://example.com", is_other_host_ok=False)

    assert check_host("https://example.com/v1/", is_other_host_ok=True) == "https://example.com"


@pytest.mark.parametrize("url", ["example", "ftp://localhost", "http://", "http://a b:x"])
def test_nonsense_is_no_url(url: str) -> None:
    """Not a URL, one sentence."""
    with pytest.raises(TargetError):
        check_host(url, is_other_host_ok=True)


async def test_probe_finds_model_server_and_tokenizer() -> None:
    """The first model is taken, and words are kept only if they are one token each."""
    with ScriptedServer(steady(Reply())) as server:
        async with plain_client(None) as http:
            target = await probe(http, server.url, None, "chat")

    assert (target.model, target.server) == ("scripted-model", "scripted")
    assert target.vocabulary.is_exact
    assert target.vocabulary.overhead == TEMPLATE_TOKENS
    assert set(target.vocabulary.words) == set(WORDS) - {ROUGH_WORD}


async def test_without_tokenize_lengths_are_approximate() -> None:
    """A server that does not tokenize is tested all the same."""
    with ScriptedServer(steady(Reply()), has_tokenize=False) as server:
        async with plain_client(None) as http:
            target = await probe(http, server.url, "mine", "chat")

    assert target.model == "mine"
    assert target.vocabulary == Vocabulary()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (httpx.Response(503), "answers 503"),
        (httpx.Response(200, json={"data": []}), "names no model"),
        (httpx.Response(200, text="hello"), "names no model"),
    ],
)
async def test_servers_without_models_are_refused(answer: httpx.Response, says: str) -> None:
    """What is missing is said, with the way out."""
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda request: answer)) as http:
        with pytest.raises(TargetError, match=says):
            await probe(http, "http://127.0.0.1:1", None, "chat")


async def test_no_server_is_said_plainly() -> None:
    """Nothing listening: is it started?"""
    async with plain_client(None) as http:
        with pytest.raises(TargetError, match="Is it started"):
            await probe(http, "http://127.0.0.1:9", None, "chat")


def test_text_has_the_planned_length_and_shared_parts() -> None:
    """Words are as many as planned less the template, prefixes are the same text, the rest is not."""
    scenario = parse_scenario(
        {
            "arrivals": {"kind": "constant", "rate_rps": 10, "duration_s": 2},
            "workload": {"prompt_tokens": 50, "shared_prefix": {"groups": 1, "tokens": 20}},
        }
    )
    requests = make_schedule(scenario).requests
    prompts = Prompts(0, Vocabulary(WORDS, overhead=6, is_exact=True))
    texts = [prompts.text(request).split() for request in requests]

    assert {len(text) for text in texts} == {44}
    assert len({tuple(text[:20]) for text in texts}) == 1
    assert len({tuple(text[20:]) for text in texts}) == len(texts)
    assert prompts.text(requests[0]) == Prompts(0, Vocabulary(overhead=6)).text(requests[0])
    assert prompts.text(requests[0]) != Prompts(1, Vocabulary(overhead=6)).text(requests[0])


@pytest.mark.parametrize(
    ("line", "turns"),
    [
        ('{"prompt": "a"}', ("a",)),
        ('{"question": "b", "answer": "c"}', ("b",)),
        ('{"turns": ["a", "b"]}', ("a", "b")),
        ('{"turns": [{"content": "a"}]}', ("a",)),
        ('{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}', ("u",)),
    ],
)
def test_prompts_files(tmp_path: Path, line: str, turns: tuple[str, ...]) -> None:
    """The usual shapes of published prompt sets."""
    path = tmp_path / "prompts.jsonl"
    path.write_text(line + "\n\n")

    assert load_prompts(path) == (turns,)


@pytest.mark.parametrize("text", ["", "{", '{"other": 1}', '{"turns": []}', '{"prompt": 3}', "[1]"])
def test_bad_prompts_files_are_refused(tmp_path: Path, text: str) -> None:
    """One sentence, whatever is wrong."""
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)

    with pytest.raises(ScenarioError, match="prompts file"):
        load_prompts(path)
