"""How pveproxy speaks HTTP: headers, closed connections, late 401s, 596 after 30 s (pve-facts §a)."""

import asyncio
import email.utils
import json
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from fakepve.model import PveError
from fakepve.server import collect

Serve = Callable[[web.Request], Awaitable[web.StreamResponse]]
_BAD_JSON = ("malformed JSON string, neither tag, array, object, number, string or atom, at character offset {0} "
             '(before "{1}") at /usr/share/perl5/PVE/APIServer/AnyEvent.pm line 934.')
# Statuses that come without a body.
_EMPTY = (401, 595, 596)


class PlainError(web.HTTPInternalServerError):
    """A 500 that pveproxy itself answers as plain text."""

    def __init__(self, text: str) -> None:
        super().__init__(reason=text, text=text + "\n", content_type="text/html")


async def parameters(request: web.Request) -> dict[str, Any]:
    """Query, form or JSON parameters, with pveproxy's refusals."""
    out = dict(collect(request.query.items()))
    body = await request.read()
    if not body:
        return out
    if request.method in ("GET", "DELETE"):
        raise PveError(501, f"Unexpected content for method '{request.method}'")
    if request.content_type == "application/json":
        try:
            given = json.loads(body)
        except ValueError as exc:
            raise PlainError(_bad_json(body.decode("utf-8", "replace"), exc)) from None
        return {**out, **given}
    if request.content_type != "application/x-www-form-urlencoded":
        raise PveError(506, f"upload {request.content_type}")
    return {**out, **collect(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True))}


def _bad_json(text: str, exc: ValueError) -> str:
    offset = exc.pos if isinstance(exc, json.JSONDecodeError) else 0
    return _BAD_JSON.format(offset, text[offset:] or "(end of string)")


def _headers() -> dict[str, str]:
    now = email.utils.formatdate(usegmt=True)
    return {"Cache-Control": "max-age=0", "Date": now, "Expires": now, "Pragma": "no-cache",
            "Server": "pve-api-daemon/3.0"}


def _reply(status: int, reason: str, body: str | None, kind: str = "application/json") -> web.Response:
    response = web.Response(status=status, reason=reason, headers=_headers())
    if body is not None:
        response.body = body.encode()
        response.headers["Content-Type"] = f"{kind};charset=UTF-8"
    if status >= 400:
        response.force_close()
    return response


def dumps(value: Any) -> str:
    """JSON as pveproxy writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def middleware(pve: Any) -> Any:
    """The outermost layer of the server `pve` (a SimPve)."""
    pending: set[asyncio.Task[web.StreamResponse]] = set()

    @web.middleware
    async def speak(request: web.Request, handler: Serve) -> web.StreamResponse:
        task = asyncio.ensure_future(_inner(request, handler))
        pending.add(task)
        task.add_done_callback(pending.discard)
        try:
            # The daemon behind the proxy does not stop when the proxy gives up (pve-facts §d).
            response = await asyncio.wait_for(asyncio.shield(task), pve.limit)
        except TimeoutError:
            return _reply(596, "Connection timed out", None)
        if response.status == 401:
            await asyncio.sleep(pve.penalty)
        return response

    async def _inner(request: web.Request, handler: Serve) -> web.StreamResponse:
        try:
            response = await handler(request)
        except PlainError as exc:
            return _reply(exc.status, exc.reason, exc.text, "text/html")
        if response.status in _EMPTY:
            return _reply(response.status, response.reason, None)
        if not isinstance(response, web.Response) or response.content_type != "application/json":
            return response
        return _reply(response.status, response.reason, dumps(_clean(json.loads(response.text or "null"))))

    return speak


def _clean(body: dict[str, Any]) -> dict[str, Any]:
    """A message of the proxy itself (501) has no newline at its end, one of the API has."""
    if str(body.get("message", "")).startswith("Method '"):
        body["message"] = body["message"].rstrip("\n")
    return body
