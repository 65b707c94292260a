"""What the tests of this folder record."""

from __future__ import annotations

from service.metrics.recorder import HttpStats, ReplicaInfo, TenantStats
from service.types import FinishReason, SequenceTimings, StepStats

INFO = ReplicaInfo(
    model_name="tiny",
    max_model_len=4096,
    num_blocks=64,
    block_size=16,
    cache_dtype="bfloat16",
    prefix_caching=True,
    max_loras=4,
    num_speculative_tokens=4,
)
TIMINGS = SequenceTimings(
    arrival_at=100.0,
    scheduled_at=100.5,
    first_token_at=102.0,
    last_token_at=104.0,
    num_prompt_tokens=30,
    num_output_tokens=5,
    num_prefix_hit_tokens=16,
)
STEP = StepStats(
    duration_s=0.02,
    num_running=3,
    num_waiting=2,
    kv_usage=0.25,
    num_prompt_tokens=14,
    num_output_tokens=3,
    num_preemptions=1,
    num_prefix_queried_tokens=30,
    num_prefix_hit_tokens=16,
    ttft_s=(2.0,),
    itl_s=(0.5, 0.25),
    finished=((FinishReason.STOP, TIMINGS),),
    drafts=((4, 2), (1, 0)),
)
HTTP = HttpStats(
    handler="/v1/completions",
    method="POST",
    status=429,
    duration_s=0.3,
    request_bytes=10,
    response_bytes=20,
    error="rate_limit_exceeded",
)
TENANT = TenantStats(tenant="alice", outcome="ok", num_prompt_tokens=30, num_output_tokens=5)
