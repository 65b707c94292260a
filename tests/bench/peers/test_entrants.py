"""Who takes part: those that could be installed, each with weights of its own making."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.bench.peers.entrants import OURS, QUANTIZATION, Field


def installed(directory: Path, **outcomes: str) -> Path:
    """As if each had been tried before; an empty outcome is a success."""
    for name, outcome in outcomes.items():
        folder = directory / name.replace("_", ".")
        folder.mkdir()
        (folder / "outcome").write_text(outcome)
    return directory


@pytest.mark.parametrize("precision", QUANTIZATION)
def test_who_cannot_be_had_is_said_and_left_out(precision: str, tmp_path: Path) -> None:
    """Ours is always there, and first; with each peer's own reason for its absence."""
    said: list[str] = []
    directory = installed(tmp_path, llama_cpp="no compiler", openvino="no wheel", vllm="no room")
    field = Field(source=tmp_path / "m.gguf", directory=directory, num_threads=2, say=said.append)
    names = [entrant.name for entrant in field.offline(precision)]
    assert names[0] == OURS
    assert not {name.split()[0] for name in names} & {"llama.cpp", "openvino", "vllm"}
    reasons = {"no compiler", "no wheel", "no room"}
    assert all(any(reason in line for reason in reasons) for line in said)
    assert len(said) >= 2


def test_everyone_has_as_many_threads(tmp_path: Path) -> None:
    """By the environment, which the peers' own libraries read; ours by its setting too, with its precision."""
    directory = installed(tmp_path, llama_cpp="", openvino="", vllm="")
    for kind in ("bf16", "f16", "q8_0", "q4_0", "hf-bf16"):
        (directory / "weights" / kind).mkdir(parents=True)
    (tmp_path / "m.gguf").touch()
    field = Field(source=tmp_path / "m.gguf", directory=directory, num_threads=3, say=lambda _: None)
    entrants = [entrant for precision in QUANTIZATION for entrant in field.offline(precision)]
    assert {entrant.environment["OMP_NUM_THREADS"] for entrant in entrants} == {"3"}
    ours = [entrant.environment for entrant in entrants if entrant.name == OURS]
    assert [each["HEADCOUNT_QUANTIZATION"] for each in ours] == ["none", "int8", "int4"]
    assert {each["HEADCOUNT_THREADS"] for each in ours} == {"3"}
