"""Stop strings are found anywhere and never shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequestError
from service.text.stop import StopStrings

# Two letters, so that prefixes, borders and overlaps are the rule and not the exception.
words = st.text("ab", max_size=12)
stop_lists = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)
piece_lists = st.lists(words, max_size=8)


def _cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """By definition: the shortest beginning of `text` that ends in a stop string, without the longest such one."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


def _run(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    watch = StopStrings(stops)
    shown = [watch.push(piece) for piece in pieces]
    return [*shown, watch.finish()], watch.matched


@given(stops=stop_lists, pieces=piece_lists)
def test_any_cutting_gives_the_text_before_the_earliest_occurrence(stops: list[str], pieces: list[str]) -> None:
    """What is shown does not depend on how the text is cut into pieces, and is cut where the first stop string
    begins.
    """
    shown, matched = _run(stops, pieces)

    assert ("".join(shown), matched) == _cut("".join(pieces), stops)


@given(stop=st.text("ab", min_size=1, max_size=5), text=words)
def test_one_stop_string_cuts_as_find_does(stop: str, text: str) -> None:
    """With one stop string the earliest occurrence is the one that `str.find` finds."""
    shown, matched = _run([stop], list(text))

    assert "".join(shown) == text.partition(stop)[0]
    assert (matched is not None) == (stop in text)


@given(stops=stop_lists, pieces=piece_lists)
def test_only_a_true_beginning_of_a_stop_string_is_held_back(stops: list[str], pieces: list[str]) -> None:
    """What is not shown yet is the longest end of the text that a stop string begins with: no delay beyond that."""
    watch = StopStrings(stops)
    text = shown = ""
    for piece in pieces:
        text += piece
        shown += watch.push(piece)
        if watch.matched:
            return
        held = text[len(shown) :]
        beginnings = {stop[:length] for stop in stops for length in range(1, len(stop))}

        assert held == max((end for end in beginnings if text.endswith(end)), key=len, default="")


@pytest.mark.parametrize(
    ("stops", "pieces", "shown"),
    [
        (["END"], ["The END of"], ["The ", ""]),
        (["END"], ["The E", "N", "D."], ["The ", "", "", ""]),
        (["END"], ["The E", "N", "ergy"], ["The ", "", "ENergy", ""]),
        (["</tool>"], ["a < b </too"], ["a < b ", "</too"]),
        (["\n\n"], ["text before\n", "\nafter", "more"], ["text before", "", "", ""]),
        (["😀"], ["a😀b"], ["a", ""]),
        ([], ["anything"], ["anything", ""]),
    ],
    ids=["inside", "across", "not-after-all", "tail-shown", "text-before-kept", "emoji", "none"],
)
def test_cases(stops: list[str], pieces: list[str], shown: list[str]) -> None:
    """Inside a piece, across pieces, almost: text before it is kept, text after it is never shown."""
    assert _run(stops, pieces)[0] == shown


def test_of_stop_strings_complete_at_once_the_longest_counts() -> None:
    """ "the end" and "end" are complete with the same character: the text ends where the first of them begins."""
    assert _run(["end", "the end"], ["in the end."]) == (["in ", ""], "the end")


def test_an_empty_stop_string_is_refused() -> None:
    """An empty string occurs everywhere: the client is told, naming the field."""
    with pytest.raises(InvalidRequestError, match="empty") as refused:
        StopStrings(["a", ""])

    assert refused.value.param == "stop"
