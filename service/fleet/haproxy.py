"""What HAProxy must do beyond what Serve tells it.

Serve makes HAProxy's configuration from a template, in which the balancing algorithm is the last line of the section
`defaults`; it is passed on as it is, and may go on in the lines below it. `tests/fleet/test_haproxy.py` shows, with
Serve's template and real processes, that all of this takes effect.
"""

from __future__ import annotations

import json
import re

from service.api.errors import Failure
from service.errors import UnavailableError

REQUEST_TIMEOUT_S = 60
CLIENT_TIMEOUT_S = 60
REPEATABLE_BYTES = 1 << 16
RETRY_AFTER_S = 1

# Its own answers, but for those to what is no HTTP at all: their page is fixed.
_FAILURES = (
    Failure(400, "The request could not be understood as HTTP.", "invalid_value"),
    Failure(408, f"The request did not arrive within {REQUEST_TIMEOUT_S} s.", "request_timeout"),
    Failure(502, "The replica failed while it worked on this request: send it again.", UnavailableError.label),
    Failure(503, "No replica can take this request at the moment: please retry later.", UnavailableError.label),
    Failure(504, "The replica did not answer in time: send the request again.", UnavailableError.label),
)


def haproxy_variables() -> dict[str, str]:
    """Serve's variables for it."""
    return {
        # A replica that dies before it has answered anything is not the client's concern: another one is asked. HAProxy
        # can ask again what fits into its buffer.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(REPEATABLE_BYTES),
        # Who refuses a connection is gone: a dead replica has the fewest connections, and would get all that come.
        "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
        # Of a client that neither takes nor sends anything; one that waits for an answer does neither, and is let be.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(CLIENT_TIMEOUT_S),
        "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": balance_and_more(),
        # Serve starts it anew after three checks that find it gone. Of its own accord it looks every ten seconds.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",  # slow is not gone
    }


def balance_and_more() -> str:
    """The algorithm, and the lines of `defaults` that Serve has no variables for."""
    return "\n    ".join(
        (
            "leastconn",
            # Only a request that is there as a whole when it is passed on can be asked again.
            "option http-buffer-request",
            f"timeout http-request {REQUEST_TIMEOUT_S}s",
            # While it splices, HAProxy does not notice that a client has gone.
            "no option splice-request",
            "no option splice-response",
            # A connection carries one request. Where one fails on a connection that another used before, HAProxy hangs
            # up without an answer; and after a change of the replicas, the process that HAProxy leaves behind would go
            # on taking requests from the connections that it has, and share them by weights that nobody tells it.
            "option httpclose",
            # Where a request fails on a connection that another one used before, HAProxy hangs up without an answer.
            *(_http_error(failure) for failure in _FAILURES),
        )
    )


def _http_error(failure: Failure) -> str:
    text = json.dumps(failure.envelope, separators=(",", ":"))
    assert not re.search(r"['\n]", text), "it stands in single quotes"
    later = "" if failure.code != UnavailableError.label else f" hdr retry-after {RETRY_AFTER_S}"
    return f"http-error status {failure.status} content-type application/json string '{text}'{later}"
