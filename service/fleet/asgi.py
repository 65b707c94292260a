"""What Serve adds to a request and we do without."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


def without_request_id(app: ASGIApp) -> ASGIApp:
    """`app` without x-request-id in its answers: Serve's own server adds the same one, and two are one too many."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
                message = {**message, "headers": kept}
            await send(message)

        await app(scope, receive, send_without)

    return wrapped


def at_root(app: ASGIApp) -> ASGIApp:
    """`app` with whole paths: it knows its own prefix, which Serve otherwise takes to be mounted."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": ""} if "root_path" in scope else scope, receive, send)

    return wrapped
