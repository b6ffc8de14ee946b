"""A tool of the server: strict arguments in, one verb, a result out; the one place errors are translated."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.shared.exceptions import MCPError
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel, ValidationError

from ragtune_mcp.core.errors import RagTuneError
from ragtune_mcp.core.results import Result
from ragtune_mcp.surface.arguments import invalid_input, short_schema, strict_model
from ragtune_mcp.surface.plain_text import presentable
from ragtune_mcp.surface.session import Session

log = logging.getLogger(__name__)

Call = Context[Session, Any]
Handler = Callable[..., Awaitable[Result]]


def session_of(call: Call) -> Session:
    """The session a call came in on."""
    return call.request_context.lifespan_context


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as declared beside its function."""

    handler: Handler
    title: str
    description: str
    annotations: ToolAnnotations


def tool(
    title: str,
    description: str,
    *,
    read_only: bool = False,
    destructive: bool = False,
    idempotent: bool = False,
    open_world: bool = False,
) -> Callable[[Handler], ToolSpec]:
    """Declare a function as a tool.

    Args:
        title: a few words for people.
        description: for the model: when to use it, what it changes, what to call next.
        read_only: it changes nothing.
        destructive: it undoes or replaces something a user may want to keep.
        idempotent: repeating it with the same arguments changes nothing more.
        open_world: it may reach beyond this machine.

    Returns:
        A decorator; the tool's name and arguments are the function's.
    """
    annotations = ToolAnnotations(
        read_only_hint=read_only,
        destructive_hint=destructive,
        idempotent_hint=idempotent or read_only,
        open_world_hint=open_world,
    )
    return lambda handler: ToolSpec(handler, title, description, annotations)


class RagTuneTool(Tool):
    """The SDK's tool with strict arguments, short schemas, compact answers and our error texts."""

    @classmethod
    def make(cls, spec: ToolSpec, defaults: Mapping[str, Any]) -> RagTuneTool:
        """Build the tool.

        Args:
            spec: its declaration.
            defaults: argument values that replace those of the signature.

        Returns:
            A tool to hand to the server.
        """
        made = cls.from_function(
            spec.handler, title=spec.title, description=spec.description, annotations=spec.annotations
        )
        metadata = made.fn_metadata
        metadata.arg_model = strict_model(metadata.arg_model, defaults)  # type: ignore[assignment]
        metadata.output_schema = short_schema(metadata.output_schema, ("title", "default", "description"))
        made.parameters = short_schema(metadata.arg_model.model_json_schema(by_alias=True), ("title",))
        assert isinstance(made, RagTuneTool)
        return made

    def parse(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Check arguments against the input schema.

        Args:
            arguments: as they came in.

        Returns:
            Every argument with its value or default.

        Raises:
            InvalidInput: an argument is unknown, missing, of the wrong type or out of range.
        """
        try:
            return self.fn_metadata.validate_arguments(arguments)
        except ValidationError as error:
            raise invalid_input(error, self.name, self.fn_metadata.arg_model) from error

    async def run(
        self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False
    ) -> Any:
        """Check the arguments, run the verb, show its result; every failure leaves as a `ToolError`."""
        try:
            result = await self.fn(context, **self.parse(arguments))
            return self.fn_metadata.convert_result(as_content(result)) if convert_result else result
        except RagTuneError as error:
            raise ToolError(presentable(str(error))) from error
        except MCPError:
            raise
        except Exception as error:
            # The server's last line: what nobody foresaw is logged in full here and hidden from the client.
            raise ToolError(internal_error(self.name, error)) from error


def as_content(result: BaseModel) -> CallToolResult:
    """A result as compact JSON text and the same as structured content."""
    data = presentable(result.model_dump(mode="json", by_alias=True))
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=data)


def internal_error(verb: str, error: Exception) -> str:
    """Log an unforeseen exception with its traceback and return the text a client may see."""
    reference = secrets.token_hex(4)
    log.error("%s failed unexpectedly (reference %s)", verb, reference, exc_info=error)
    return (
        f"[internal] {verb} failed unexpectedly. Hint: The server's log has more under reference {reference}."
    )
