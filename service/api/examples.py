"""An example of each request and its answer, for `/docs`."""

from __future__ import annotations

Example = dict[str, object]

CHAT: Example = {"messages": [{"role": "user", "content": "What is attention?"}], "max_tokens": 64}
CHAT_ANSWER: Example = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1764028800,
    "model": "a-model",
    "system_fingerprint": "headcount-1.0",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "A way to look back.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 12,
        "completion_tokens": 6,
        "total_tokens": 18,
        "prompt_tokens_details": {"cached_tokens": 0},
    },
}

COMPLETION: Example = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
COMPLETION_ANSWER: Example = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1764028800,
    "model": "a-model",
    "system_fingerprint": "headcount-1.0",
    "choices": [{"index": 0, "text": " Paris.", "logprobs": None, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 0},
    },
}

RESPONSE: Example = {"input": "What is attention?", "max_output_tokens": 64}
RESPONSE_ANSWER: Example = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1764028800,
    "status": "completed",
    "model": "a-model",
    "output": [
        {
            "id": "msg_1",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "A way to look back.", "annotations": [], "logprobs": []}],
        }
    ],
    "usage": {
        "input_tokens": 12,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 18,
    },
}

MESSAGE: Example = {"messages": [{"role": "user", "content": "What is attention?"}], "max_tokens": 64}
MESSAGE_ANSWER: Example = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "a-model",
    "content": [{"type": "text", "text": "A way to look back.", "citations": None}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 12,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 6,
    },
}

EMBEDDING: Example = {"input": ["The cat sat", "A dog stood"]}
EMBEDDING_ANSWER: Example = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.6, -0.8]}],
    "model": "a-model",
    "usage": {"prompt_tokens": 3, "total_tokens": 3},
}
