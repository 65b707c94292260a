"""The engine: continuous batching of token sequences over a paged KV cache.

It knows token ids, nothing else: no text, HTTP, Ray or Prometheus. Read in this order: `core` (one step), `sequence`,
`block_manager`, `scheduler`, `batch` and `runner_protocol` (what crosses to the model), `sampler`, `loop` and `stream`
(the thread and its asyncio side).
"""
