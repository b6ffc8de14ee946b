"""The few HTTP calls of an Ollama that creating and checking a model needs."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from ragtune_mcp.core.errors import ExportMismatch, OllamaUnavailable
from ragtune_mcp.core.workspace import sha256_file

_LOOK_S = 1.0
_CALL_S = 300.0
_PORT = 11434


class OllamaServer:
    """An Ollama at a host, written as OLLAMA_HOST allows: with or without scheme and port."""

    def __init__(self, host: str) -> None:
        scheme, _, rest = host.strip().rpartition("://")
        name, _, path = rest.partition("/")
        if ":" not in name.rpartition("]")[2]:
            name = f"{name or '127.0.0.1'}:{_PORT}"
        # What a server listens on everywhere is reached here.
        name = name.replace("0.0.0.0", "127.0.0.1", 1)
        is_here = name.startswith(("127.", "localhost:", "[::1]:"))
        # A proxy does not see what is on this machine.
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if is_here else []))
        self.url = f"{scheme or 'http'}://{name}{'/' + path.strip('/') if path.strip('/') else ''}"

    def version(self) -> str:
        """Its version; raises OllamaUnavailable when no Ollama answers within a second."""
        try:
            return str(self._call("GET", "/api/version", timeout_s=_LOOK_S)["version"])
        except (ExportMismatch, KeyError) as error:
            raise OllamaUnavailable(f"What answers at {self.url} is no Ollama: {error}.") from error

    def create(self, model: str, gguf: Path, context: int) -> None:
        """Upload a GGUF file and make a model of it.

        Args:
            model: name it gets.
            gguf: the file.
            context: tokens it reads of a text.

        Raises:
            ExportMismatch: Ollama does not take the file.
            OllamaUnavailable: it stopped answering.
        """
        digest = f"sha256:{sha256_file(gguf)}"
        # Always asked first: where the blob is there, the upload is answered before it is read.
        if not self._has_blob(digest):
            with gguf.open("rb") as body:
                self._call("POST", f"/api/blobs/{digest}", body, length=gguf.stat().st_size)
        request = {"model": model, "files": {"model.gguf": digest}, "parameters": {"num_ctx": context}}
        answer = self._call("POST", "/api/create", {**request, "stream": False})
        if answer.get("status") != "success":
            raise ExportMismatch(f"Ollama did not create {model!r}: {answer}.")

    def show(self, model: str) -> dict[str, Any]:
        """What Ollama knows of a model."""
        return self._call("POST", "/api/show", {"model": model})

    def embed(self, model: str, texts: list[str], context: int) -> tuple[list[list[float]], int]:
        """Unit vectors of texts, and how many tokens they had together."""
        # Always a list: a lone "" would give no vector.
        request = {"model": model, "input": texts, "truncate": True, "options": {"num_ctx": context}}
        answer = self._call("POST", "/api/embed", request)
        return answer["embeddings"], int(answer.get("prompt_eval_count") or 0)

    def digest(self, model: str) -> str | None:
        """The manifest digest under which Ollama keeps a model."""
        wanted = model if ":" in model else f"{model}:latest"
        models = self._call("GET", "/api/tags").get("models", ())
        return next((str(entry["digest"]) for entry in models if entry.get("name") == wanted), None)

    def delete(self, model: str) -> None:
        """Remove a model."""
        self._call("DELETE", "/api/delete", {"model": model})

    def _has_blob(self, digest: str) -> bool:
        try:
            self._call("HEAD", f"/api/blobs/{digest}")
        except ExportMismatch:
            return False
        return True

    def _call(
        self, method: str, path: str, body: Any = None, *, length: int = 0, timeout_s: float = _CALL_S
    ) -> dict[str, Any]:
        headers = {"Content-Length": str(length)} if length else {"Content-Type": "application/json"}
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with self._opener.open(request, timeout=timeout_s) as response:
                text = response.read()
            return dict(json.loads(text)) if text else {}
        except urllib.error.HTTPError as error:
            detail = error.read().decode("utf-8", "replace")[:300]
            raise ExportMismatch(f"Ollama answered {method} {path} with {error.code}: {detail}") from error
        except (OSError, HTTPException, ValueError, TypeError) as error:
            raise OllamaUnavailable(f"No Ollama answers at {self.url}: {error}.") from error
