"""A tokenizer without a model: one token per byte, for the synthetic runner."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from service.text.chat_template import ChatTemplate
from service.text.parts import TokenizerParts

NUM_BYTES = 256
END_OF_TURN = "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level_parts() -> TokenizerParts:
    """256 bytes, then `<|im_start|>` and `<|im_end|>`, the last of which ends a generation."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(alphabet) == NUM_BYTES
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", END_OF_TURN)])
    return TokenizerParts(
        backend=backend,
        eos_token_ids=frozenset({NUM_BYTES + 1}),
        chat_template=ChatTemplate(CHAT_TEMPLATE, special_tokens={"eos_token": END_OF_TURN}),
    )
