"""What the two applications of the service are called, and what they have in common."""

from __future__ import annotations

MODEL_APPLICATION = "headcount"
MODEL_PREFIX = "/v1"
REPLICA = "Replica"

FRONT_APPLICATION = "front"
FRONT_PREFIX = "/"
FRONT = "Front"

# Serve's own limit must never bind: the engine has the queue, and answers 429 with a reason when it is full.
MAX_ONGOING_REQUESTS = 100_000
# A replica is unhealthy when its engine's heartbeat stops, not when a busy machine is slow to answer Serve.
HEALTH_CHECK_PERIOD_S = 5
HEALTH_CHECK_TIMEOUT_S = 120
