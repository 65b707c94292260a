"""`POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`, for admins: which adapters are served.

Names and fields are vLLM's. All replicas follow, those that start later too (`service.fleet.adapters`).
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import ClassVar

from fastapi import APIRouter, Depends, Response
from pydantic import Field

from service.adapters import AdapterView
from service.api.auth import admin_only
from service.api.body import parse_body
from service.api.fields import StrictModel, Unsupported
from service.api.logs import RequestRecord
from service.api.openapi import answers, errors, request_body
from service.api.operation import adapter_card
from service.api.render import Json
from service.api.state import ApiState
from service.api.work import WorkResponse


class LoadAdapterRequest(StrictModel):
    """An adapter that lies in the server's `lora_dir`."""

    unsupported: ClassVar[Unsupported] = {"load_inplace": (False,)}

    lora_name: str = Field(description="The name by which requests ask for it, as their `model`.")
    lora_path: str = Field(description="Its directory, relative to lora_dir or absolute.")


class UnloadAdapterRequest(StrictModel):
    """An adapter that was loaded."""

    unsupported: ClassVar[Unsupported] = {"lora_int_id": ()}

    lora_name: str


MODELS = (LoadAdapterRequest, UnloadAdapterRequest)
_EXAMPLE: Json = {"lora_name": "sql", "lora_path": "sql-v2"}


def adapter_routes(state: ApiState, view: AdapterView) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["adapters"], dependencies=[Depends(admin_only)])
    forbidden = errors(HTTPStatus.FORBIDDEN)

    @router.post(
        "/load_lora_adapter",
        openapi_extra=request_body(LoadAdapterRequest, _EXAMPLE),
        responses=answers(adapter_card(state, "sql")) | forbidden,
    )
    async def load_lora_adapter() -> Response:
        """Serve another adapter, on all replicas. The answer is its entry among the models."""
        return WorkResponse(state, load)

    @router.post(
        "/unload_lora_adapter",
        openapi_extra=request_body(UnloadAdapterRequest, {"lora_name": "sql"}),
        responses=answers({"id": "sql", "object": "model", "deleted": True}) | forbidden,
    )
    async def unload_lora_adapter() -> Response:
        """Serve an adapter no more. Requests that use it go on to their end."""
        return WorkResponse(state, unload)

    async def load(state: ApiState, body: bytes, _: RequestRecord) -> Json:
        fields = parse_body(LoadAdapterRequest, body)
        await asyncio.to_thread(view.load, fields.lora_name, fields.lora_path)
        return adapter_card(state, fields.lora_name)

    async def unload(_: ApiState, body: bytes, __: RequestRecord) -> Json:
        fields = parse_body(UnloadAdapterRequest, body)
        await asyncio.to_thread(view.unload, fields.lora_name)
        return {"id": fields.lora_name, "object": "model", "deleted": True}

    return router
