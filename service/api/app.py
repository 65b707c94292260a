"""The HTTP application: a plain ASGI app that any server can run, and that holds nothing but its `ApiState`."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from service.api import adapters, attention, dialects, embeddings, tokenize
from service.api.auth import RATE_LIMIT_HEADERS, Authentication
from service.api.errors import answer_error
from service.api.fleet import fleet_routes
from service.api.middleware import REQUEST_ID_HEADER, RequestScope
from service.api.openapi import openapi_of
from service.api.operation import model_routes, operation_routes
from service.api.state import ApiState
from service.api.web import page_routes
from service.errors import HeadcountError

_DESCRIPTION = (
    "Chat and text completions, compatible with the OpenAI API. Every failed answer has the same error envelope."
)


def create_app(state: ApiState) -> FastAPI:
    """The application that serves `state`: a pure function of it.

    No route lets FastAPI parse anything: what it would say of a mistake (422, `detail`) is not what clients understand.
    """
    app = FastAPIOffline(
        redoc_url=None,  # one page of documentation is enough
        title="Headcount",
        version=state.version,
        description=_DESCRIPTION,
        redirect_slashes=False,  # another URL is another URL: 404, not a redirect that loses the body
    )
    for kind in (HeadcountError, HTTPException):
        app.add_exception_handler(kind, answer_error)
    app.include_router(dialects.generation_routes(state))
    app.include_router(dialects.dialect_routes(state))
    app.include_router(embeddings.embedding_routes(state))
    app.include_router(tokenize.tokenize_routes(state))
    app.include_router(attention.attention_routes(state))
    app.include_router(model_routes(state))
    app.include_router(operation_routes(state))
    if state.adapters is not None:
        app.include_router(adapters.adapter_routes(state, state.adapters))
    if state.fleet is not None:
        app.include_router(fleet_routes(state.fleet))
        app.include_router(page_routes())
    fields = (embeddings.EmbeddingFields, attention.AttentionFields)
    models = (*dialects.MODELS, *tokenize.MODELS, *adapters.MODELS, *fields)
    app.openapi = openapi_of(app, models, with_keys=state.keys is not None)  # type: ignore[method-assign]
    app.add_middleware(Authentication, state=state)
    if state.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=state.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID_HEADER, *RATE_LIMIT_HEADERS],
        )
    app.add_middleware(RequestScope, state=state)  # added last, so that it is the outermost
    return app
