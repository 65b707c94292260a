"""The file of tenants: what may stand in it, and what happens when it changes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from service.api.keys import KeyRing, new_key
from service.errors import ConfigError
from tests.api.tenants import entry, hash_of, key_of, ring, write


def test_what_is_left_out_has_a_default_that_limits_nothing(tmp_path: Path) -> None:
    """A name and a key are enough for a user."""
    tenant = ring(tmp_path, entry("alice")).tenant_of(key_of("alice").encode())

    assert tenant is not None
    assert (tenant.name, tenant.role, tenant.weight, tenant.priority) == ("alice", "user", 1.0, 0)
    assert (tenant.requests_per_minute, tenant.tokens_per_minute, tenant.concurrent) == (None, None, None)


def test_all_that_an_entry_may_say(tmp_path: Path) -> None:
    """Each of it arrives."""
    more = 'role = "admin"\nweight = 2.5\npriority = -3\nrequests_per_minute = 1\ntokens_per_minute = 2\nconcurrent = 3'
    tenant = ring(tmp_path, entry("a.b-c_9", more)).tenant_of(key_of("a.b-c_9").encode())

    assert tenant is not None
    assert (tenant.role, tenant.weight, tenant.priority) == ("admin", 2.5, -3)
    assert (tenant.requests_per_minute, tenant.tokens_per_minute, tenant.concurrent) == (1, 2, 3)


@pytest.mark.parametrize("key", [b"", b"key-of-bob ", b"key-of-bo", b"\xff\x00", hash_of("key-of-bob").encode()])
def test_no_other_key_is_known(tmp_path: Path, key: bytes) -> None:
    """Neither a part of one, nor the hash that stands in the file."""
    assert ring(tmp_path, entry("alice"), entry("bob")).tenant_of(key) is None


def test_a_tenant_has_two_keys_while_one_is_replaced(tmp_path: Path) -> None:
    """Both are of the same name."""
    text = f'[[tenant]]\nname = "alice"\nkeys = ["{hash_of("old")}", "{hash_of("new")}"]\n'
    keys = ring(tmp_path, text, entry("bob"))

    assert [tenant and tenant.name for tenant in map(keys.tenant_of, (b"old", b"new", b"other"))] == [
        "alice",
        "alice",
        None,
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[tenant]\n", "cannot be read"),
        ("tenant = 1\n", "not valid at tenant:"),
        ("", "not valid at tenant: Field required"),
        ("other = 1\n[[tenant]]\n", "not valid at tenant.0.name: Field required"),
        (entry("a b"), "not valid at tenant.0.name"),
        (entry(""), "not valid at tenant.0.name"),
        ('[[tenant]]\nname = "a"\nkeys = ["my-secret-key"]\n', "not valid at tenant.0.keys.0"),
        (entry("a", 'role = "root"'), "not valid at tenant.0.role"),
        (entry("a", "weight = 0"), "not valid at tenant.0.weight"),
        (entry("a", "weight = inf"), "not valid at tenant.0.weight"),
        (entry("a", "request_per_minute = 5"), "not valid at tenant.0.request_per_minute: Extra inputs"),
        (entry("a", "concurrent = 0"), "not valid at tenant.0.concurrent"),
        (entry("b") + entry("a", "tokens_per_minute = 1.5"), "not valid at tenant.1.tokens_per_minute"),
        (entry("a") + entry("a").replace(hash_of(key_of("a")), hash_of("x")), "has one name twice"),
        (entry("a") + entry("b").replace(hash_of(key_of("b")), hash_of(key_of("a"))), "has one key twice"),
    ],
)
def test_a_mistake_is_named_and_no_secret_shown(tmp_path: Path, text: str, complaint: str) -> None:
    """The place in the file is in the sentence; what looks like a key or its hash is not."""
    with pytest.raises(ConfigError) as caught:
        ring(tmp_path, text)

    assert complaint in str(caught.value)
    assert "my-secret-key" not in str(caught.value)
    assert hash_of(key_of("a")) not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Whoever asks for keys gets no server that is open instead."""
    with pytest.raises(ConfigError, match=r"nowhere\.toml does not exist"):
        KeyRing(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        KeyRing(tmp_path)


def test_a_change_of_the_file_is_noticed(tmp_path: Path) -> None:
    """From the next request on: new keys count, and removed ones do not."""
    keys = ring(tmp_path, entry("alice"))
    write(tmp_path / "keys.toml", entry("bob"))

    assert keys.tenant_of(key_of("alice").encode()) is None
    assert keys.tenant_of(key_of("bob").encode()) is not None


@pytest.mark.parametrize("text", ["[[tenant]\n", entry("a b"), None])
def test_a_change_that_is_broken_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    """The keys stay as they were; the log says so once; a file that is whole again is taken."""
    caplog.set_level(logging.INFO)
    path = tmp_path / "keys.toml"
    keys = ring(tmp_path, entry("alice"))
    if text is None:
        path.unlink()
    else:
        write(path, text)

    for _ in range(3):
        assert keys.tenant_of(key_of("alice").encode()) is not None
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    write(path, entry("bob"))
    assert keys.tenant_of(key_of("bob").encode()) is not None
    assert "1 tenants" in caplog.messages[-1]


def test_new_keys_differ_and_can_be_put_into_a_header() -> None:
    """256 bits in letters, digits, - and _."""
    first, second = new_key(), new_key()

    assert first != second
    assert first.startswith("hc-")
    assert len(first) == 3 + 43
    assert first.isascii()
    assert not set(first) & set(" \"'\\\n")
