"""Webhooks of the caller: register, list, delete, dead letters, replay."""

from __future__ import annotations

import json
from typing import Any

from starlette.types import Scope

from poiesis.api.extensions.context import Context, Document, Handler
from poiesis.api.parameters import PARAMETERS
from poiesis.api.users import USER, User
from poiesis.api.validation import DOCUMENT
from poiesis.domain.states import State
from poiesis.domain.webhooks import Delivery, Webhook


def operations(context: Context) -> dict[str, Handler]:
    service = context.services.webhooks

    async def create(scope: Scope) -> Document:
        user: User = scope[USER]
        given: dict[str, Any] = scope[DOCUMENT]
        webhook = await context.call(
            service.create,
            given["url"],
            owner=user.name,
            is_admin=user.access is None,
            states=[State(name) for name in given.get("states", ())],
            tagged_only=given.get("tagged_only", False),
            all_users=given.get("all_users", False),
            description=given.get("description", ""),
        )
        return {**_document(webhook), "secret": webhook.secret}

    async def list_(scope: Scope) -> Document:
        return {"webhooks": [_document(w) for w in await context.call(service.list, scope[USER].name)]}

    async def get(scope: Scope) -> Document:
        webhook = await context.call(service.get, scope["path_params"]["id"], scope[USER].name)
        return {**_document(webhook), "pending": await context.call(service.pending, webhook.id)}

    async def delete(scope: Scope) -> Document:
        await context.call(service.delete, scope["path_params"]["id"], scope[USER].name)
        return {}

    async def enable(scope: Scope) -> Document:
        await context.call(service.enable, scope["path_params"]["id"], scope[USER].name)
        return {}

    async def dead(scope: Scope) -> Document:
        query = scope[PARAMETERS]
        limit = query["page_size"]
        found = await context.call(
            service.dead, scope["path_params"]["id"], scope[USER].name, after=query["after"], limit=limit
        )
        page: dict[str, Any] = {"messages": [_dead_letter(m) for m in found]}
        return {**page, "next_after": found[-1].seq} if len(found) == limit else page

    async def replay(scope: Scope) -> Document:
        given = scope[DOCUMENT] or {}
        count = await context.call(service.replay, scope["path_params"]["id"], scope[USER].name, given.get("sequences"))
        return {"replayed": count}

    return {
        "CreateWebhook": create,
        "ListWebhooks": list_,
        "GetWebhook": get,
        "DeleteWebhook": delete,
        "EnableWebhook": enable,
        "ListDeadLetters": dead,
        "ReplayDeadLetters": replay,
    }


def _document(webhook: Webhook) -> dict[str, Any]:
    return {
        "id": webhook.id,
        "url": webhook.url,
        "states": sorted(webhook.states),
        "tagged_only": webhook.tagged_only,
        "all_users": webhook.all_users,
        "description": webhook.description,
        "creation_time": webhook.created_at.isoformat(),
        "disabled": webhook.disabled,
        "failures": webhook.failures,
    }


def _dead_letter(message: Delivery) -> dict[str, Any]:
    return {
        "id": message.message_id,
        "sequence": message.seq,
        "attempts": message.attempts,
        "error": message.error,
        "body": json.loads(message.body),
    }
