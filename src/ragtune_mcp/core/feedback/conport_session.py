"""One MCP connection to ConPort: opened at the first call, one call at a time, closed when idle.

The connection lives on an event loop in a thread of its own, so that calls are plain functions and may come
from any thread. mcp's client is imported on first use: it costs most of a second.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from ragtune_mcp.core.errors import ConPortUnavailable, InvalidInput
from ragtune_mcp.core.feedback.fields import encode_json

if TYPE_CHECKING:
    from mcp.client import Client
    from mcp_types import CallToolResult

log = logging.getLogger(__name__)

START_TIMEOUT_S = 180.0
_START_TRIES = 3
LOCKED_PAUSES_S = (0.4, 0.8, 1.6, 3.2, 6.0)
_CLOSE_WAIT_S = 5.0
# What ConPort answers while another process holds its database.
_LOCKED = ("database is locked", "table is locked", "schema is locked", "disk I/O error")
_INVALID = ("validation error", "Invalid workspace_id")
# Arguments that a ConPort with a strict schema takes as JSON text.
_JSON_ARGUMENTS = (("log_custom_data", "value"), ("batch_log_items", "items"))


class ConPortInterrupted(ConPortUnavailable):
    """The connection ended or the call timed out: ConPort may have carried it out, or may still do so."""


class ConPortRefused(ConPortUnavailable):
    """The tool itself answered with an error: what was asked was not done, but ConPort is there."""


class ConPortSession:
    """Calls of ConPort's tools over one connection.

    Args:
        connect: makes a client that is not yet entered; called for every (re)start, with an `ExitStack` for
            what must stay open as long as the connection.
        idle_s: seconds without a call after which the connection is closed.
    """

    call_timeout_s: ClassVar[float] = 120.0

    def __init__(self, connect: Callable[[ExitStack], Client], idle_s: float) -> None:
        self._connect = connect
        self._idle_s = idle_s
        self._lock = threading.RLock()
        self._stack: ExitStack | None = None
        self._portal: BlockingPortal | None = None
        self._client: Client | None = None
        self._as_text: frozenset[tuple[str, str]] = frozenset()
        self._last_used = 0.0

    def call(self, tool: str, arguments: Mapping[str, Any], *, timeout_s: float = 0) -> Any:
        """Call one tool and unwrap its result.

        Args:
            tool: the tool's name.
            arguments: JSON-able arguments.
            timeout_s: seconds to wait for the answer; 0 for the usual.

        Returns:
            The tool's structured result; the list itself where the tool returns a list.

        Raises:
            ConPortInterrupted: the connection ended or the call timed out; it may have been carried out.
            ConPortRefused: the tool answered with an error.
            ConPortUnavailable: ConPort cannot be started or reached, or its database stays locked.
            InvalidInput: ConPort refuses the arguments.
        """
        with self._lock:
            for wait_s in (*LOCKED_PAUSES_S, None):
                result = self._call_once(tool, arguments, timeout_s or self.call_timeout_s)
                if not result.is_error:
                    return _unwrap(result)
                text = _text(result)
                if not is_locked(text):
                    raise _refusal(tool, text)
                if wait_s is not None:
                    pause(wait_s)
            raise ConPortUnavailable(
                f"ConPort's database stays locked: {text}", hint="Another process is writing to it; repeat."
            )

    def close(self) -> None:
        """End the connection and with it a child process; the next call starts a new one."""
        # A call may be under way in another thread; at exit it must not hold the process for minutes.
        held = self._lock.acquire(timeout=_CLOSE_WAIT_S)
        try:
            self._close()
        finally:
            if held:
                self._lock.release()

    def _call_once(self, tool: str, arguments: Mapping[str, Any], timeout_s: float) -> CallToolResult:
        from mcp.shared.exceptions import MCPError
        from mcp_types import CONNECTION_CLOSED, REQUEST_TIMEOUT

        client, portal = self._open()
        sent = {name: encode_json(v) if (tool, name) in self._as_text else v for name, v in arguments.items()}
        try:
            return portal.call(partial(client.call_tool, tool, sent, read_timeout_seconds=timeout_s))
        except MCPError as error:
            if error.code == REQUEST_TIMEOUT:
                message = f"ConPort did not answer {tool} within {timeout_s:.0f} s."
                raise ConPortInterrupted(message) from error
            if error.code != CONNECTION_CLOSED:
                raise ConPortUnavailable(f"ConPort answered {tool} with {error.message!r}.") from error
            self._close()
            raise ConPortInterrupted(f"ConPort's connection ended during {tool}.") from error
        except (anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
            self._close()
            raise ConPortInterrupted(f"ConPort's connection ended during {tool}.") from error
        finally:
            self._last_used = time.monotonic()

    def _open(self) -> tuple[Client, BlockingPortal]:
        if self._client is None or self._portal is None:
            for attempt in range(_START_TRIES):
                try:
                    self._start()
                    break
                except ConPortInterrupted:
                    # Two ConPorts that start on a fresh workspace at once: one of them exits silently.
                    if attempt == _START_TRIES - 1:
                        raise
                    pause(attempt + 1.0)
        assert self._client is not None and self._portal is not None
        return self._client, self._portal

    def _start(self) -> None:
        from mcp.shared.exceptions import MCPError

        with ExitStack() as stack:
            client = self._connect(stack)
            portal = stack.enter_context(start_blocking_portal(name="conport"))
            try:
                self._client = stack.enter_context(portal.wrap_async_context_manager(_connected(client)))
                tools = portal.call(self._client.list_tools).tools
            except (OSError, MCPError, ExceptionGroup) as error:
                self._client = None
                raise _start_failure(error) from error
            self._portal = portal
            self._stack = stack.pop_all()
        schemas = {tool.name: tool.input_schema.get("properties", {}) for tool in tools}
        self._as_text = frozenset(
            (tool, name)
            for tool, name in _JSON_ARGUMENTS
            if schemas.get(tool, {}).get(name, {}).get("type") == "string"
        )
        self._last_used = time.monotonic()
        self._watch_idle(self._idle_s)
        atexit.register(self.close)
        log.info("ConPort connected")

    def _watch_idle(self, delay_s: float) -> None:
        timer = threading.Timer(delay_s, self._stop_when_idle, (self._stack,))
        timer.daemon = True
        timer.start()

    def _stop_when_idle(self, stack: ExitStack) -> None:
        with self._lock:
            if self._stack is not stack:
                return
            remaining = self._last_used + self._idle_s - time.monotonic()
            if remaining > 0:
                self._watch_idle(remaining)
            else:
                log.info("ConPort stopped after %.0f idle seconds", self._idle_s)
                self._close()

    def _close(self) -> None:
        stack, self._stack, self._client, self._portal = self._stack, None, None, None
        if stack is None:
            return
        atexit.unregister(self.close)
        try:
            stack.close()
        except (OSError, ExceptionGroup):
            log.info("ConPort's connection ended untidily", exc_info=True)


def is_locked(text: str) -> bool:
    """Whether ConPort's error text says that its database is held by another process."""
    # A validation error repeats the value, which may say anything.
    return any(sign in text for sign in _LOCKED) and not _is_invalid(text)


def pause(seconds: float) -> None:
    """Wait, with jitter, so that processes that collided do not collide again."""
    time.sleep(seconds * random.uniform(0.75, 1.25))


@asynccontextmanager
async def _connected(client: Client) -> AsyncIterator[Client]:
    # The limit is for connecting only, but the scope must enclose all that the connection opens.
    started = False
    with anyio.CancelScope(deadline=anyio.current_time() + START_TIMEOUT_S) as scope:
        async with client as entered:
            scope.deadline = math.inf
            started = True
            yield entered
    if not started:
        raise TimeoutError(f"no answer within {START_TIMEOUT_S:.0f} s")


def _start_failure(error: BaseException) -> ConPortUnavailable:
    from mcp.shared.exceptions import MCPError

    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    message = f"ConPort could not be started or reached: {error}."
    hint = "Install it (pip install context-portal-mcp) or correct RAGTUNE_CONPORT_COMMAND or ..._URL."
    if isinstance(error, MCPError):
        return ConPortInterrupted(message, hint=hint)
    return ConPortUnavailable(message, hint=hint)


def _refusal(tool: str, text: str) -> ConPortRefused | InvalidInput:
    if _is_invalid(text):
        return InvalidInput(f"ConPort refuses {tool}: {text}")
    return ConPortRefused(f"ConPort failed in {tool}: {text}")


def _is_invalid(text: str) -> bool:
    return any(sign in text for sign in _INVALID)


def _unwrap(result: CallToolResult) -> Any:
    content = result.structured_content
    if content is None:
        text = _text(result)
        return json.loads(text) if text else []
    return content["result"] if set(content) == {"result"} else content


def _text(result: CallToolResult) -> str:
    return "".join(getattr(part, "text", "") for part in result.content)
