"""Settings: precedence, provenance, and errors that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import config
from service.config import Settings, as_environment, load_settings
from service.errors import ConfigError


def test_flags_beat_environment_beats_file_beats_default(tmp_path: Path) -> None:
    """Each key takes the value of the strongest source that names it, and remembers which that was."""
    file = tmp_path / "headcount.toml"
    file.write_text("port = 1\nhost = '0.0.0.0'\nmax_num_seqs = 3\n")

    loaded = load_settings(
        flags={"config": str(file), "port": "3"}, environment={"HEADCOUNT_PORT": "2", "HEADCOUNT_MAX_NUM_SEQS": "4"}
    )

    assert (loaded.settings.port, loaded.origins["port"]) == (3, "flag")
    assert (loaded.settings.max_num_seqs, loaded.origins["max_num_seqs"]) == (4, "environment")
    assert (loaded.settings.host, loaded.origins["host"]) == ("0.0.0.0", str(file))  # noqa: S104 - a value, not a socket
    assert (loaded.settings.min_replicas, loaded.origins["min_replicas"]) == (1, "default")


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        ({"prot": "1"}, {}, "Unknown setting --prot (flag). Did you mean --port?"),
        ({}, {"HEADCOUNT_MAX_NUM_SEQ": "1"}, "Did you mean HEADCOUNT_MAX_NUM_SEQS?"),
        ({"zzzzz": "1"}, {}, "`headcount config` lists all settings."),
        ({"port": "x"}, {}, "port = 'x' (flag) is not valid: input should be a valid integer"),
        ({}, {"HEADCOUNT_PORT": "0"}, "port = '0' (environment) is not valid"),
        ({"synthetic_cost": '{"base": 1}'}, {}, "is not valid"),
        ({"config": "/nowhere.toml"}, {}, "The configuration file /nowhere.toml does not exist."),
        ({"device": "tpu"}, {}, "device = 'tpu' (flag) is not valid"),
        ({"block_size": "8"}, {}, "block_size = '8' (flag) is not valid: must be 16, 32 or 64."),
        (
            {"drain_timeout_s": "inf"},
            {},
            "drain_timeout_s = 'inf' (flag) is not valid: input should be a finite",
        ),
        ({"kv_cache_gib": "nan"}, {}, "kv_cache_gib = 'nan' (flag) is not valid"),
        ({"cors_origins": "https://ui.example"}, {}, "cors_origins = 'https://ui.example' (flag) is not valid"),
        ({"otlp_endpoint": "localhost:4318"}, {}, "must be a URL, such as http://localhost:4318."),
    ],
)
def test_a_bad_setting_is_one_clear_sentence(
    flags: dict[str, object], environment: dict[str, str], message: str
) -> None:
    """Unknown keys name the closest known one; malformed values name the key, the value and where it came from."""
    with pytest.raises(ConfigError) as caught:
        load_settings(flags=flags, environment=environment)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tracing_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for traces is told what to install, before anything starts."""
    assert Settings(otlp_endpoint="http://localhost:4318").otlp_endpoint is not None
    monkeypatch.setattr(config, "OTLP_EXPORTER", "a-package-that-is-not-there")
    with pytest.raises(ConfigError, match=r"otlp_endpoint = .* needs packages .* pip install 'headcount\[otel\]'\."):
        load_settings(flags={"otlp_endpoint": "http://localhost:4318"}, environment={})


def test_a_bad_file_is_one_clear_sentence(tmp_path: Path) -> None:
    """A file that is no TOML, or holds an unknown key, is refused by name."""
    file = tmp_path / "headcount.toml"
    for text, message in (("port = ", "cannot be read"), ("prot = 1", "Unknown setting prot")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_settings(flags={}, environment={"HEADCOUNT_CONFIG": str(file)})


@given(
    port=st.integers(1, 65535), seqs=st.integers(1, 4096), caching=st.booleans(), gib=st.floats(0.01, 100) | st.none()
)
def test_settings_survive_a_round_trip_through_the_environment(
    port: int, seqs: int, caching: bool, gib: float | None
) -> None:
    """What is written as text is read back as the same settings."""
    settings = Settings(port=port, max_num_seqs=seqs, prefix_caching=caching, kv_cache_gib=gib)
    assert load_settings(flags={}, environment=as_environment(settings)).settings == settings


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),  # noqa: S104 - no socket
        ("::", "http://[::1]:80"),
        ("fd00::2", "http://[fd00::2]:80"),
        ("localhost", "http://localhost:80"),
    ],
)
def test_the_url_is_one_that_works_here(host: str, url: str) -> None:
    """An address that means every interface is no address to connect to, and IPv6 is put in brackets."""
    assert Settings(host=host, port=80).url == url


@pytest.mark.parametrize(
    ("settings", "model_id"),
    [
        (Settings(), "smollm2-135m-instruct"),
        (Settings(model="org/name:file.gguf"), "org/name:file.gguf"),
        (Settings(runner="synthetic"), "synthetic"),
        (Settings(model="org/name", served_model_name="mine"), "mine"),
        (Settings(model=str(Path(__file__))), "test_config"),
        (Settings(model=str(Path(__file__).parent)), "tests"),
    ],
)
def test_a_model_has_a_name_for_the_api(settings: Settings, model_id: str) -> None:
    """As set; else that of the default model or the hub; of a path the last part."""
    assert settings.model_id == model_id


def test_every_setting_says_what_it_is() -> None:
    """`headcount config` and `--help` have a description to show for each key."""
    assert [key for key, field in Settings.model_fields.items() if not field.description] == []
