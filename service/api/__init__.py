"""The OpenAI-compatible HTTP API over any `service.backend.Backend`.

The life of one request, in the order of the files: `middleware` (request id, log line) → `app` (route) → `respond`
(body, disconnect) → `chat` or `completions` (fields, prompt, tokens) → `generation` (events of the backend → pieces of
text, by `choice`) → `render` and `sse` (pieces → JSON). Whatever goes wrong on the way becomes an answer in `errors`.
"""
