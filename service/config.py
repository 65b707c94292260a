"""Every setting, declared once, read once: defaults < file < `HEADCOUNT_*` environment < command-line flags.

`load_settings` merges the four, refuses unknown keys by naming the closest one, and remembers where each value came
from (`headcount config` prints that). The file is TOML with the same keys: `port = 8001`.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from service.engine.faults import Faults
from service.engine.synthetic import StepCost
from service.errors import ConfigError

ENVIRONMENT_PREFIX = "HEADCOUNT_"
CONFIG_FILE_VARIABLE = "HEADCOUNT_CONFIG"
OTLP_EXPORTER = "opentelemetry-exporter-otlp-proto-http"


def _from_json(value: object) -> object:
    """Flags and environment bring text where the file brings a table."""
    return json.loads(value) if isinstance(value, str) else value


def _block_size(value: int) -> int:
    """A key tile of the plain PyTorch attention is made of whole blocks."""
    if value not in (16, 32, 64):
        raise ValueError("must be 16, 32 or 64")
    return value


def _otlp_endpoint(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("must be a URL, such as http://localhost:4318")
    try:
        distribution(OTLP_EXPORTER)
    except PackageNotFoundError:
        raise ValueError("needs packages that are not installed: pip install 'headcount[otel]'") from None
    return value


def _max_replicas(value: int, info: ValidationInfo) -> int:
    if value < info.data.get("min_replicas", 0):
        raise ValueError(f"must be at least min_replicas, which is {info.data['min_replicas']}")
    return value


class Settings(BaseModel):
    """What is in force. Durations in seconds, sizes in the unit that the name says."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # what is served
    model: str = Field(
        "smollm2-135m-instruct",
        min_length=1,
        description="the default model, a directory, a .gguf file, or a hub id (org/name, org/name:file.gguf)",
    )
    served_model_name: str | None = Field(
        None, min_length=1, description="name in the API; default: derived from model"
    )
    runner: Literal["model", "synthetic"] = Field(
        "model", description="synthetic: no weights, steps cost synthetic_cost"
    )
    synthetic_cost: Annotated[StepCost, BeforeValidator(_from_json)] = Field(
        StepCost(base_s=0.005, per_sequence_s=0.0005, per_prefill_token_s=0.0001, per_context_token_s=1e-7),
        description="seconds that a step of the synthetic runner takes, as JSON",
    )
    synthetic_faults: Annotated[Faults, BeforeValidator(_from_json)] = Field(
        Faults(), description="what goes wrong with it on purpose, as JSON: shares of requests"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 where the CPU has it")
    quantization: Literal["none", "int8", "int4"] = Field(
        "none", description="bits of the weights in linear layers, on a CPU; a GGUF's own groups are kept as they are"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(
        0, ge=0, le=1024, description="compute threads of a replica; 0: all cores, shared by the replicas"
    )
    cache_dir: Path = Field(Path("~/.cache/headcount"), description="downloads, prepared weights, compiled kernels")

    # the engine
    max_model_len: int | None = Field(
        None, ge=1, description="most tokens of a sequence; default: what the model allows"
    )
    kv_cache_gib: float | None = Field(None, gt=0, description="memory for keys and values; default: from what is free")
    block_size: Annotated[int, AfterValidator(_block_size)] = Field(
        16, description="tokens in a KV block: 16, 32 or 64; native kernels need 16"
    )
    max_num_seqs: int = Field(64, ge=1, le=4096, description="most sequences in a step")
    max_num_batched_tokens: int = Field(256, ge=16, le=1 << 20, description="most new tokens in a step")
    prefix_caching: bool = Field(True, description="reuse the blocks of equal prefixes")
    speculation: Literal["ngram", "off"] = Field(
        "ngram", description="guess a sequence's next tokens by what followed its latest ones before; off: do not"
    )
    num_speculative_tokens: int = Field(4, ge=1, le=32, description="most tokens guessed for a sequence in a step")
    max_waiting: int = Field(256, ge=0, description="requests that may wait in a replica before it answers 429")
    queue_timeout_s: float | None = Field(
        None, gt=0, description="longest wait to be begun before a request gets 429; default: 0.8 of slo_ttft_s"
    )
    heartbeat_timeout_s: float = Field(60.0, gt=0, description="a step that takes longer makes the replica unhealthy")

    # adapters beside the model
    lora_modules: Annotated[dict[str, Path], BeforeValidator(_from_json)] = Field(
        {}, description='adapters to serve from the start, as JSON: {"name": "directory"}'
    )
    lora_dir: Path | None = Field(None, description="where adapters lie that may be loaded while the server runs")
    max_loras: int = Field(8, ge=1, le=1024, description="most adapters at a time")
    max_lora_rank: int = Field(64, ge=1, le=256, description="largest rank of an adapter")

    # HTTP
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    write_timeout_s: float = Field(60.0, gt=0, description="a client that reads nothing for so long counts as gone")
    max_body_mib: float = Field(4.0, gt=0, le=1024, description="largest request body")
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_from_json)] = Field(
        (), description='web origins whose pages may call the API, as JSON: ["https://ui.example"], or ["*"] for any'
    )
    api_keys_file: Path | None = Field(None, description="TOML file of tenants and their keys; default: open to all")
    tool_parser: Literal["auto", "hermes", "llama3", "mistral", "mistral-args", "none"] = Field(
        "auto", description="how the model writes tool calls; auto: as its chat template does"
    )
    log_format: Literal["json", "text"] = Field("json", description="form of the request log")
    log_prompts: bool = Field(False, description="put prompts into the request log")

    otlp_endpoint: Annotated[str, AfterValidator(_otlp_endpoint)] | None = Field(
        None, description="an OpenTelemetry collector (OTLP/HTTP) for traces: http://localhost:4318; default: none"
    )

    # the fleet
    min_replicas: int = Field(
        1, ge=0, le=1024, description="fewest replicas; 0: none while nobody asks, and the first request waits for one"
    )
    max_replicas: Annotated[int, AfterValidator(_max_replicas)] = Field(
        1, ge=1, le=1024, validate_default=True, description="most replicas, each with its own engine"
    )
    slo_ttft_s: float = Field(2.0, gt=0, description="a request is served well when its first token comes in this time")
    slo_tpot_s: float = Field(0.1, gt=0, description="... and the others within this time each, on average")
    price_per_replica_hour: float = Field(1.0, gt=0, description="what an hour of a replica costs, in any currency")
    price_per_miss: float | None = Field(
        None, gt=0, description="what a request that is not served well costs; default: as much as 30 s of a replica"
    )
    data_plane: Literal["auto", "haproxy", "serve"] = Field("auto", description="what stands before the replicas")
    replica_cpus: float = Field(0.0, ge=0, description="CPUs that Ray reserves for a replica")
    drain_timeout_s: float = Field(60.0, ge=0, description="longest wait for running requests at shutdown")
    scale_down_timeout_s: float = Field(
        3600.0, ge=0, description="longest wait for running requests of a replica that is no longer needed"
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="where each node serves the metrics of its replicas; default: nowhere",
    )
    state_dir: Path = Field(
        Path("~/.local/state/headcount"), description="what the autoscaler has learned, and the record of its decisions"
    )
    startup_timeout_s: float = Field(600.0, gt=0, description="longest wait for the replicas to be ready")

    @property
    def longest_wait_s(self) -> float:
        """Until a request must be begun: by default so that the step of its first token is still in time."""
        return 0.8 * self.slo_ttft_s if self.queue_timeout_s is None else self.queue_timeout_s

    @property
    def most_drafted_tokens(self) -> int:
        return 0 if self.speculation == "off" else self.num_speculative_tokens

    @property
    def cache_path(self) -> Path:
        return self.cache_dir.expanduser().absolute()

    @property
    def state_path(self) -> Path:
        return self.state_dir.expanduser().absolute()

    @property
    def api_keys_path(self) -> Path | None:
        return None if self.api_keys_file is None else self.api_keys_file.expanduser().absolute()

    @property
    def serves_adapters(self) -> bool:
        return bool(self.lora_modules) or self.lora_dir is not None

    @property
    def model_id(self) -> str:
        """The name in the API: as set, else the default model's or hub's own, else the last part of a path."""
        if self.served_model_name is not None:
            return self.served_model_name
        if self.runner == "synthetic":
            return "synthetic"
        path = Path(self.model).expanduser()
        if self.model != type(self).model_fields["model"].default and path.exists():
            return path.stem if path.is_file() else path.resolve().name
        return self.model

    @property
    def url(self) -> str:
        """Where a client on this machine finds the service."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - not a socket
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings, and for each key the place its value came from: `default`, a file's path, a variable or a flag."""

    settings: Settings
    origins: Mapping[str, str]


def load_settings(*, flags: Mapping[str, object], environment: Mapping[str, str]) -> LoadedSettings:
    """Merge the sources. `flags` are the given ones only; its key `config` names the file, as does HEADCOUNT_CONFIG.

    Raises ConfigError: unknown key (with the closest known one), malformed value (with where it came from).
    """
    flags = dict(flags)
    path = flags.pop("config", None) or environment.get(CONFIG_FILE_VARIABLE)
    values: dict[str, object] = {}
    origins = dict.fromkeys(Settings.model_fields, "default")

    def take(key: str, value: object, origin: str, name: str) -> None:
        if key not in Settings.model_fields:
            raise ConfigError(f"Unknown setting {name} ({origin}).{_closest(key, name)}")
        values[key], origins[key] = value, origin

    if path is not None:
        for key, value in _read_file(Path(str(path))).items():
            take(key, value, str(path), key)
    for variable in sorted(environment):
        if variable.startswith(ENVIRONMENT_PREFIX) and variable != CONFIG_FILE_VARIABLE:
            key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            take(key, environment[variable], "environment", variable)
    for key, value in flags.items():
        take(key, value, "flag", _flag(key))
    try:
        return LoadedSettings(Settings.model_validate(values), origins)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        reason = first["msg"].removeprefix("Value error, ")
        reason = reason[:1].lower() + reason[1:]
        value = values.get(key, Settings.model_fields[key].default)
        raise ConfigError(f"{key} = {value!r} ({origins[key]}) is not valid: {reason}.") from None


def as_environment(settings: Settings) -> dict[str, str]:
    """Variables with which another process loads the same settings."""
    values = settings.model_dump(mode="json", exclude_none=True)
    return {
        ENVIRONMENT_PREFIX + key.upper(): value if isinstance(value, str) else json.dumps(value)
        for key, value in values.items()
    }


def _read_file(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"The configuration file {path} does not exist.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error}.") from None


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _closest(key: str, name: str) -> str:
    matches = difflib.get_close_matches(key, Settings.model_fields, n=1, cutoff=0.5)
    if not matches:
        return " `headcount config` lists all settings."
    closest = matches[0]
    if name.startswith("--"):
        closest = _flag(closest)
    elif name.startswith(ENVIRONMENT_PREFIX):
        closest = ENVIRONMENT_PREFIX + closest.upper()
    return f" Did you mean {closest}?"
