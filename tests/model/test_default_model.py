"""The default model: greedy tokens equal transformers' on the same dequantised weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from service.model.gguf_weights import open_gguf
from service.model.loader import load_model
from service.model.recipe import Recipe
from service.model.safetensors_weights import LLAMA_NAMES
from service.model.stored import stored_weights
from service.model.weights import Checkpoint
from tests.model.tiny_models import Bench

NUM_NEW = 24
PROMPTS = [  # token ids, so that no tokenizer is needed
    [504, 3575, 282, 4649, 314],  # The capital of France is
    [6403, 1980, 253, 655, 28, 281, 253, 1165, 6560],  # Once upon a time, in a small village
    [1604, 3987, 46477, 24, 94, 727],  # def fibonacci(n):
    [34, 1232, 216, 34, 446],  # 2 + 2 =
    [12615, 36411, 418],  # Water boils at
    [42703, 407, 603, 437, 36192, 12673, 45365, 1219, 43424],  # Die Hauptstadt von Deutschland ist
    [33, 28, 216, 34, 28, 216, 35, 28, 216, 36, 28],  # 1, 2, 3, 4,
    [2068, 325, 355, 441, 288, 325, 28],  # To be or not to be,
    [504, 25359, 314, 260],  # The mitochondria is the
    [1, 4093, 198, 5820, 1296, 14797, 30, 2, 198, 1, 520, 9531, 198],  # a chat turn: Name three colours.
    [47416, 51, 7342, 15771, 1264, 31798, 47],  # ¿Cómo estás?
    [23428, 1672, 18451, 3629, 28531],  # SELECT * FROM users WHERE
]


@pytest.fixture(scope="module")
def checkpoint(default_model_path: Path) -> Checkpoint:
    return open_gguf(default_model_path)


def transformers_model(checkpoint: Checkpoint) -> Any:
    """transformers' Llama with the file's weights, dequantised to float32."""
    config = checkpoint.config
    assert config.rope is not None
    theirs = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_position,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
        tie_word_embeddings=True,
    )
    with torch.device("meta"):  # without weights of its own, whose random numbers would take longer than the test
        untyped: Any = LlamaForCausalLM
        model = untyped(theirs).eval()
    model.load_state_dict(unfused(checkpoint), strict=False, assign=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(theirs)
    model.tie_weights()
    return model


def unfused(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights under transformers' names: every fused one cut at the sizes of its parts."""
    recipe: Recipe = checkpoint.recipe
    state = {}
    for name, stored in stored_weights(checkpoint, torch.float32, "none").items():
        prefix, layer, module = name.rpartition(".")[0].rpartition(".")[0], name.split(".")[1], name.split(".")[-2]
        theirs = LLAMA_NAMES.layer[module] if prefix else (LLAMA_NAMES.model[module],)
        pieces = torch.split(stored.read(checkpoint.source), [part.shape[0] for part in recipe[name]])
        for their_name, piece in zip(theirs, pieces, strict=True):
            state[f"{their_name.format(i=layer)}.weight"] = piece
    return state


def test_greedy_tokens_equal_transformers(checkpoint: Checkpoint, default_model_path: Path, tmp_path: Path) -> None:
    """A dozen prompts decoded in one batch give, token by token, what transformers finds most likely."""
    model = load_model(default_model_path, dtype="float32", device="cpu", cache_dir=tmp_path)
    bench = Bench(model, num_blocks=64)
    streams = [bench.stream(prompt, capacity=len(prompt) + NUM_NEW) for prompt in PROMPTS]
    bench.step(*((stream, len(stream.token_ids)) for stream in streams))
    for _ in range(NUM_NEW):
        for stream in streams:
            stream.token_ids.append(int(stream.logits[-1].argmax()))
        bench.step(*((stream, 1) for stream in streams))
    longest = max(len(stream.token_ids) for stream in streams)
    padded = torch.tensor([stream.token_ids + [0] * (longest - len(stream.token_ids)) for stream in streams])
    with torch.no_grad():
        reference = transformers_model(checkpoint)(padded).logits  # causal: padding on the right changes nothing
    for prompt, stream, padded_logits in zip(PROMPTS, streams, reference, strict=True):
        logits = padded_logits[: len(stream.token_ids)]
        assert stream.token_ids[len(prompt) :] == logits.argmax(-1).tolist()[len(prompt) - 1 : -1]
        torch.testing.assert_close(torch.stack(stream.logits), logits, rtol=1e-3, atol=1e-3)
