"""HTTP mode: the MCP endpoint, and beside it the five REST endpoints as thin routes and the status page."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from mcp.server import MCPServer
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ragtune_mcp.core.errors import (
    Conflict,
    FeatureDisabled,
    IntegrityError,
    InvalidInput,
    NotEnoughData,
    NotReady,
    RagTuneError,
    ServiceUnavailable,
    UnknownId,
)
from ragtune_mcp.core.results import Result
from ragtune_mcp.server import configure_logging, create_server, leave
from ragtune_mcp.surface.page import status_page
from ragtune_mcp.surface.plain_text import presentable
from ragtune_mcp.surface.session import Session
from ragtune_mcp.surface.tool import RagTuneTool, internal_error
from ragtune_mcp.surface.tools import make_tools

STATUS_OF: tuple[tuple[type[RagTuneError], int], ...] = (
    (InvalidInput, 400),
    (FeatureDisabled, 403),
    (UnknownId, 404),
    (Conflict, 409),
    (NotEnoughData, 409),
    (IntegrityError, 409),
    (NotReady, 503),
    (ServiceUnavailable, 503),
)
_BODY_LIMIT = 1024 * 1024
_RETRY_AFTER_S = 10
_CODE_OF_STATUS = {404: "not_found", 405: "method_not_allowed"}

Answer = Callable[[Request], Awaitable[Result]]


def serve_http(workspace: str | Path, host: str, port: int) -> None:
    """Serve one workspace over HTTP until interrupted.

    Args:
        workspace: its folder; empty for the one of the environment, else the current project.
        host: address to listen on.
        port: TCP port.

    Raises:
        InvalidInput: the host is not loopback and RAGTUNE_HTTP_TOKEN is not set.
    """
    import uvicorn

    configure_logging()
    server, session = create_server(workspace)
    app = build_app(server, session, host)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,  # uvicorn's own writes the access log to stdout
        http="h11",  # httptools, taken where installed, keeps the blanks after a header's value
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    leave()


def build_app(server: MCPServer[Session], session: Session, host: str = "127.0.0.1") -> ASGIApp:
    """The ASGI application: `/mcp`, the specification's endpoints and the status page, behind one guard.

    Args:
        server: what `create_server` returned.
        session: likewise.
        host: address it will listen on; decides which Host headers are accepted.

    Returns:
        The application; its lifespan opens and closes the workspace.

    Raises:
        InvalidInput: the host is not loopback and RAGTUNE_HTTP_TOKEN is not set.
    """
    token = session.settings.ragtune_http_token
    if not _is_loopback(host) and not token:
        raise InvalidInput(
            f"host {host!r} can be reached from other machines and RAGTUNE_HTTP_TOKEN is not set.",
            hint="Set RAGTUNE_HTTP_TOKEN to a long random text, or listen on 127.0.0.1.",
        )
    _add_routes(server, session)
    security = _security(host)
    app = server.streamable_http_app(host=host, transport_security=security)
    app.add_exception_handler(HTTPException, _http_error)
    return Guard(app, security, token)


class Guard:
    """Refuses foreign Host and Origin headers (DNS rebinding) and, where a token is set, requests without it.

    Args:
        app: what to protect.
        security: accepted Host and Origin headers.
        token: required bearer token; empty for none.
    """

    def __init__(self, app: ASGIApp, security: TransportSecuritySettings, token: str) -> None:
        self._app = app
        self._headers = TransportSecurityMiddleware(security)
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        refusal = await self._refusal(Request(scope)) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    async def _refusal(self, request: Request) -> ASGIApp | None:
        refused = await self._headers.validate_request(request)
        if refused is not None:
            message = "The Host or Origin header names another site."
            return _error(
                refused.status_code,
                "foreign_origin",
                message,
                "Call http://127.0.0.1 or http://localhost directly.",
            )
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if self._token and not (
            scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token)
        ):
            hint = "Send the header Authorization: Bearer <RAGTUNE_HTTP_TOKEN>."
            return _error(
                401,
                "unauthorized",
                "The bearer token is missing or wrong.",
                hint,
                {"WWW-Authenticate": "Bearer"},
            )
        return None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _security(host: str) -> TransportSecuritySettings:
    names = {"127.0.0.1", "localhost", "[::1]"}
    try:
        address = ip_address(host)
    except ValueError:
        names.add(host)
    else:
        if address.is_unspecified:
            # Any name of this machine is meant; a rebinding page does not know the token required here.
            return TransportSecuritySettings(enable_dns_rebinding_protection=False)
        names.add(f"[{host}]" if address.version == 6 else host)
    return TransportSecuritySettings(
        allowed_hosts=[pattern for name in sorted(names) for pattern in (name, f"{name}:*")],
        allowed_origins=[f"http://{name}{port}" for name in sorted(names) for port in ("", ":*")],
    )


def _add_routes(server: MCPServer[Session], session: Session) -> None:
    tools = {tool.name: tool for tool in make_tools(session.settings)}

    async def generate_data(request: Request) -> Result:
        arguments = await _arguments(request, tools["generate_training_data"])
        return await session.call(lambda core: core.generate_training_data(**arguments))

    async def fine_tune(request: Request) -> Result:
        arguments = await _arguments(request, tools["start_finetune"])
        return await session.call(lambda core: core.start_finetune(**arguments))

    async def training_status(request: Request) -> Result:
        job_id = request.path_params["job_id"]
        return await session.call(lambda core: core.job_status(job_id))

    async def ab_start(request: Request) -> Result:
        arguments = await _arguments(request, tools["start_ab_test"])
        return await session.call(lambda core: core.start_ab_test(**arguments))

    async def ab_results(request: Request) -> Result:
        test_id = request.path_params["test_id"]
        return await session.call(lambda core: core.ab_results(test_id))

    for method, path, answer in (
        ("POST", "/training/generate-data", generate_data),
        ("POST", "/training/fine-tune", fine_tune),
        ("GET", "/training/status/{job_id}", training_status),
        ("POST", "/testing/ab-test/start", ab_start),
        ("GET", "/testing/ab-test/{test_id}/results", ab_results),
    ):
        server.custom_route(path, methods=[method])(_endpoint(f"{method} {path}", answer))

    @server.custom_route("/", methods=["GET"])  # type: ignore[untyped-decorator]
    async def page(request: Request) -> Response:
        html = await session.call(status_page)
        return HTMLResponse(
            html, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        )


def _endpoint(name: str, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            result = await answer(request)
        except RagTuneError as error:
            status = next((status for kind, status in STATUS_OF if isinstance(error, kind)), 500)
            headers = {"Retry-After": str(_RETRY_AFTER_S)} if status == 503 else {}
            return _error(status, error.code, error.message, error.hint, headers)
        except HTTPException:
            raise
        except Exception as error:
            # The server's last line, as for tools: logged in full here, hidden from the client.
            return _error(500, "internal", internal_error(name, error), "")
        return JSONResponse(presentable(result.model_dump(mode="json", by_alias=True)))

    return endpoint


async def _arguments(request: Request, tool: RagTuneTool) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, f"Content-Type is {kind!r}; send application/json.")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _BODY_LIMIT:
            raise HTTPException(413, f"The body is longer than {_BODY_LIMIT} bytes.")
    try:
        arguments = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"The body is not JSON: {error}.", hint="Send a JSON object.") from error
    if not isinstance(arguments, dict):
        raise InvalidInput(f"The body is a JSON {type(arguments).__name__}.", hint="Send a JSON object.")
    return tool.parse(arguments)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODE_OF_STATUS.get(error.status_code, "bad_request")
    return _error(error.status_code, code, str(error.detail), "", error.headers)


def _error(status: int, code: str, message: str, hint: str, headers: Any = None) -> JSONResponse:
    body = {"success": False, "error": presentable({"code": code, "message": message, "hint": hint})}
    return JSONResponse(body, status, headers=headers)
