"""Who takes part, by precision of the weights. All weights are made from the one file that we serve."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import service
from service.bench.peers.install import LLAMA_CPP, OPENVINO, VLLM, Peer, llama_server, python_of
from service.bench.peers.weights import directory_as, gguf_as
from service.cli import SPIN_COUNT, SPIN_VARIABLE
from service.errors import StartupError

OURS = "headcount"
QUANTIZATION = {"16-bit": "none", "8-bit": "int8", "4-bit": "int4"}
# By precision and name: whose, the file here that runs it, and its weights.
WORKERS: Mapping[str, Mapping[str, tuple[Peer, str, str]]] = {
    "16-bit": {
        "llama.cpp bf16": (LLAMA_CPP, "llama_cpp", "bf16"),
        "openvino f16": (OPENVINO, "openvino", "f16"),
        "vllm bf16": (VLLM, "vllm", "directory"),
    },
    "8-bit": {
        "llama.cpp q8_0": (LLAMA_CPP, "llama_cpp", "q8_0"),
        "openvino q8_0": (OPENVINO, "openvino", "q8_0"),
    },
    "4-bit": {
        "llama.cpp as it is": (LLAMA_CPP, "llama_cpp", "as it is"),
        "llama.cpp q4_0": (LLAMA_CPP, "llama_cpp", "q4_0"),
        "openvino as it is": (OPENVINO, "openvino", "as it is"),
        "openvino q4_0": (OPENVINO, "openvino", "q4_0"),
    },
}
STREAM_TOKENS = 512  # of a stream at most, prompt and answer

Command = tuple[str, ...]
Maker = Callable[[], Command]


@dataclass(frozen=True, slots=True)
class Entrant:
    """A command that answers rounds (`service.bench.contender`), or serves HTTP at a port that is to be added."""

    name: str
    command: Command
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """`source` is the model's GGUF file, `directory` where peers and their weights are kept.

    A peer that cannot be had is left out, and `say` is told why.
    """

    source: Path
    directory: Path
    num_threads: int
    say: Callable[[str], None]

    def offline(self, precision: str) -> list[Entrant]:
        """Ours first."""
        ours = (sys.executable, "-m", "service.bench.peers.ours")
        makers: dict[str, Maker] = {OURS: lambda: (*ours, OURS)}
        if precision == "16-bit":
            makers["transformers bf16"] = lambda: (*ours, "transformers", str(self.source))
        for name, worker in WORKERS[precision].items():
            makers[name] = partial(self._worker, *worker)
        return self._entrants(makers, QUANTIZATION[precision])

    def servers(self, num_streams: int) -> list[Entrant]:
        """Of 16-bit weights, each with room for so many streams at once; ours first."""
        llama = ("--parallel", str(num_streams), "--ctx-size", str(num_streams * STREAM_TOKENS), "--port")
        vllm = ("-m", "vllm.entrypoints.openai.api_server", "--dtype", "bfloat16", "--max-model-len", "2048")
        threads = str(self.num_threads)
        ours = (sys.executable, "-m", "service.cli", "serve", "--max-replicas", "1", "--threads", threads, "--port")
        makers: dict[str, Maker] = {
            OURS: lambda: ours,
            "llama.cpp bf16": lambda: (
                *(str(llama_server(self.directory)), "--model", str(self._weights("bf16")), "--threads", threads),
                *llama,
            ),
            "vllm bf16": lambda: (
                *(str(python_of(VLLM, self.directory)), *vllm, "--model", str(self._weights("directory")), "--port"),
            ),
        }
        return self._entrants(makers, QUANTIZATION["16-bit"])

    def _entrants(self, makers: Mapping[str, Maker], quantization: str) -> list[Entrant]:
        threads = str(self.num_threads)
        common = {"OMP_NUM_THREADS": threads, "PYTHONPATH": str(Path(service.__file__).parents[1])}
        of_ours = {
            SPIN_VARIABLE: SPIN_COUNT,
            "HEADCOUNT_MODEL": str(self.source),
            "HEADCOUNT_THREADS": threads,
            "HEADCOUNT_QUANTIZATION": quantization,
        }
        entrants = []
        for name, make in makers.items():
            try:
                entrants.append(Entrant(name, make(), common | (of_ours if name == OURS else {})))
            except StartupError as error:
                self.say(f"{name} does not take part: {error}")
        return entrants

    def _worker(self, peer: Peer, module: str, kind: str) -> Command:
        python = python_of(peer, self.directory)
        return (str(python), "-m", f"service.bench.peers.{module}", str(self._weights(kind)), str(self.num_threads))

    def _weights(self, kind: str) -> Path:
        directory = self.directory / "weights"
        match kind:
            case "as it is":
                return self.source
            case "directory":
                return directory_as(self.source, directory)
            case _:
                return gguf_as(self.source, kind, directory)
