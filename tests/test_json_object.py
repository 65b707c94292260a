"""JSON files of a model: whatever they hold, an object comes back or one sentence that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import ModelError, ModelNotFoundError
from service.json_object import read_json_object


def test_an_object_is_read(tmp_path: Path) -> None:
    """The object as it stands, in UTF-8."""
    (tmp_path / "a.json").write_text('{"größe": [1, null]}', encoding="utf-8")
    assert read_json_object(tmp_path / "a.json") == {"größe": [1, None]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "cannot be read as JSON"),
        (b'{"a": "\xff"}', "cannot be read as JSON"),
        pytest.param(b"[" * 100_000, "cannot be read as JSON", id="nested too deep"),
        (b"[]", "must hold a JSON object"),
    ],
)
def test_what_is_no_object_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    """No content ends in another exception than ours."""
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ModelError, match=rf"a\.json {reason}"):
        read_json_object(tmp_path / "a.json")


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    """A missing file is told apart from one that is there and cannot be read."""
    with pytest.raises(ModelNotFoundError, match=r"has no a\.json"):
        read_json_object(tmp_path / "a.json")
    with pytest.raises(ModelError, match="cannot be read"):
        read_json_object(tmp_path)
