"""Turns planned segments into text of a known number of tokens, and reads prompts from files.

Synthetic text is made of common English words, each one token (with its leading space) in the vocabularies in use.
Where the server offers `/tokenize`, `calibrate` keeps only the words that really are, and measures what the chat
template adds.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.errors import ScenarioError
from loadtest.schedule import FilePrompt, PlannedRequest, Segment

_COMMON_NOUNS = """
    time year people way day man thing woman life child world school state family student group country problem hand
    part place case week company system program question work government number night point home water room mother
    area money story fact month lot right study book eye job word business issue side kind head house service friend
    father power hour game line end member law car city community name president team minute idea body information
    back parent face others level office door health person art war history party result change morning reason
    research girl guy moment air teacher force education foot boy age policy music market sense nation plan college
    interest death experience effect use class control field development role effort rate heart drug show leader
    light voice wife police mind price report decision son view relationship town road arm difference value building
    action season society tax director position player record paper space ground form event official matter center
    couple site project activity star table need court oil situation cost industry figure street image phone data
    picture practice piece land product doctor wall patient worker news test movie north love support technology
"""
WORDS = tuple(_COMMON_NOUNS.split())
PROBE_LENGTH = 64

CountTokens = Callable[[str], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`words` are one token each; a prompt costs `overhead` tokens besides them. `is_exact` when the server
    confirmed it."""

    words: tuple[str, ...] = WORDS
    overhead: int = 0
    is_exact: bool = False


async def calibrate(count_tokens: CountTokens) -> Vocabulary:
    """The words that this tokenizer takes as one token each, and the fixed cost of a prompt.

    `count_tokens(text)` is the whole prompt's length, template included. Not exact when the parts do not add up.
    """
    base = await count_tokens("time")
    words = await _single_token_words(WORDS, base, count_tokens)
    probe = " ".join(random.Random(0).choices(words, k=PROBE_LENGTH)) if words else ""
    overhead = base - 1
    if not words or await count_tokens(probe) != overhead + PROBE_LENGTH:
        return Vocabulary(overhead=max(overhead, 0))
    return Vocabulary(words, overhead, is_exact=True)


async def _single_token_words(words: Sequence[str], base: int, count_tokens: CountTokens) -> tuple[str, ...]:
    """Halving finds the odd ones out in few calls."""
    if await count_tokens(" ".join(["time", *words])) == base + len(words):
        return tuple(words)
    if len(words) == 1:
        return ()
    middle = len(words) // 2
    first = await _single_token_words(words[:middle], base, count_tokens)
    return (*first, *await _single_token_words(words[middle:], base, count_tokens))


class Prompts:
    """Text of each planned request; the same for the same seed, in any process."""

    def __init__(self, seed: int, vocabulary: Vocabulary, files: Sequence[FilePrompt] = ()) -> None:
        self._seed = seed
        self._vocabulary = vocabulary
        self._files = files

    def text(self, request: PlannedRequest) -> str:
        """The user's turn. The first turn's template overhead is taken off its own text, so that the total is as
        planned."""
        if request.file_prompt is not None:
            return self._files[request.file_prompt][request.turn]
        *shared, own = request.segments
        overhead = self._vocabulary.overhead if request.turn == 0 else 0
        own = Segment(own.key, max(1, own.tokens - overhead))
        return " ".join(self._segment(segment) for segment in (*shared, own))

    def _segment(self, segment: Segment) -> str:
        rng = random.Random(f"{self._seed}:{segment.key}")
        return " ".join(rng.choices(self._vocabulary.words, k=segment.tokens))


def load_prompts(path: Path) -> tuple[FilePrompt, ...]:
    """User turns of each JSON line: `turns`, `messages`, `prompt`, `question` or `text`. Raises ScenarioError."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        prompts = tuple(_user_turns(json.loads(line)) for line in text.splitlines() if line.strip())
    except OSError as error:
        raise ScenarioError(f"The prompts file {path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise ScenarioError(f"The prompts file {path} is malformed: {error}.") from error
    if not prompts:
        raise ScenarioError(f"The prompts file {path} is empty.")
    return prompts


def _user_turns(entry: dict[str, Any]) -> FilePrompt:
    if "messages" in entry:
        turns = [message["content"] for message in entry["messages"] if message["role"] == "user"]
    elif "turns" in entry:
        turns = [turn["content"] if isinstance(turn, dict) else turn for turn in entry["turns"]]
    else:
        found = next((entry[key] for key in ("prompt", "question", "text") if key in entry), None)
        if found is None:
            raise ValueError("a line has none of turns, messages, prompt, question, text")
        turns = [found]
    if not turns or not all(isinstance(turn, str) and turn for turn in turns):
        raise ValueError("a line has no user text")
    return tuple(turns)
