"""The only place that spells file and folder names."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ragtune_mcp.core.clock import utc_now
from ragtune_mcp.core.errors import InvalidInput, PathOutsideWorkspace
from ragtune_mcp.core.settings import Settings


@dataclass(frozen=True, slots=True)
class JobPaths:
    """Files of one job: `.ragtune/jobs/<job_id>/`."""

    folder: Path

    @property
    def log(self) -> Path:
        """Everything the worker process wrote to stdout and stderr."""
        return self.folder / "worker.log"

    @property
    def checkpoints(self) -> Path:
        """Training checkpoints, newest complete one used on resume."""
        return self.folder / "checkpoints"

    @property
    def trained(self) -> Path:
        """JSON: what a finished training found; a resumed job does not train again."""
        return self.folder / "trained.json"

    @property
    def scratch(self) -> Path:
        """Half-made results; renamed into place when complete."""
        return self.folder / "scratch"


_MANIFEST = ".manifest.json"


@dataclass(frozen=True, slots=True)
class DatasetPaths:
    """A data set's file and what stands beside it under the same stem."""

    file: Path

    @property
    def manifest(self) -> Path:
        """JSON: counts, thresholds, sha256 of the files; written last, so its presence means complete."""
        return self._beside(_MANIFEST)

    @property
    def rejected(self) -> Path:
        """JSONL: one line per feedback entry that was not used, with its reason."""
        return self._beside(".rejected.jsonl")

    @property
    def card(self) -> Path:
        """Markdown for people: histogram, balance, examples."""
        return self._beside(".card.md")

    @staticmethod
    def manifests(folder: Path) -> list[Path]:
        """The manifests of all data sets in a folder, by name."""
        return sorted(folder.glob(f"*{_MANIFEST}"))

    def _beside(self, ending: str) -> Path:
        return self.file.with_name(self.file.stem + ending)


@dataclass(frozen=True, slots=True)
class EncoderPaths:
    """Files of one serving encoder."""

    folder: Path

    @property
    def model(self) -> Path:
        """The ONNX graph."""
        return self.folder / "model.onnx"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, as in the model version."""
        return self.folder / "tokenizer.json"

    @property
    def config(self) -> Path:
        """What the graph is: digest, dimension, pooling, hashes of the other files, parity; written last."""
        return self.folder / "encoder.json"


@dataclass(frozen=True, slots=True)
class OllamaPaths:
    """Files of one export to Ollama."""

    folder: Path

    def gguf(self, quantization: str) -> Path:
        """The model file that the Modelfile names."""
        return self.folder / f"model-{quantization}.gguf"

    @property
    def modelfile(self) -> Path:
        """Ollama's recipe beside the GGUF."""
        return self.folder / "Modelfile"

    @property
    def instructions(self) -> Path:
        """What to do with the files, for people."""
        return self.folder / "instructions.md"

    @property
    def report(self) -> Path:
        """What was written and how it was checked; written last."""
        return self.folder / "conversion.json"


class Workspace:
    """One project folder and the state beneath it.

    Args:
        root: the folder; `root` is its absolute path, symbolic links kept.
        settings: the environment of this workspace.
    """

    def __init__(self, root: Path, settings: Settings) -> None:
        self.root = Path(os.path.abspath(root))
        self.settings = settings

    @property
    def id(self) -> str:
        """ConPort's workspace_id: the literal path string, no trailing slash."""
        return str(self.root)

    @property
    def state(self) -> Path:
        """Everything that is ours and not meant to be read."""
        return self.root / ".ragtune"

    @property
    def database(self) -> Path:
        """SQLite: jobs, versions, exposures, outcomes, outbox, audit log."""
        return self.state / "ragtune.db"

    @property
    def index(self) -> Path:
        """Chroma's folder; only the owner process opens it."""
        return self.state / "index"

    @property
    def chroma_lock(self) -> Path:
        """Held by whoever starts or stops the vector store."""
        return self.state / "chroma.lock"

    @property
    def chroma_owner(self) -> Path:
        """JSON {place, pid, started, port, lock}: who owns the vector store."""
        return self.state / "chroma.json"

    @property
    def chroma_log(self) -> Path:
        """What the vector store's process wrote."""
        return self.state / "chroma.log"

    @property
    def documents_lock(self) -> Path:
        """Held from reading a source until its documents are stored."""
        return self.state / "documents.lock"

    @property
    def index_lock(self) -> Path:
        """Held while vectors and their rows are written together."""
        return self.state / "index.lock"

    def build_lock(self, digest: str) -> Path:
        """Held by the one process that builds the collection of a model digest."""
        return self.state / f"build-{digest[:16]}.lock"

    @property
    def encoders(self) -> Path:
        """ONNX encoders by model digest."""
        return self.state / "encoders"

    def encoder(self, digest: str) -> EncoderPaths:
        """The files of the serving encoder of a model digest."""
        return EncoderPaths(self.encoders / digest)

    @property
    def exports(self) -> Path:
        """GGUF and ONNX exports."""
        return self.state / "exports"

    def export(self, version: str, kind: str, quantization: str) -> Path:
        """Where a version lies in another format; each quantization for Ollama has a folder of its own."""
        name = f"{plain_name(version)}-{kind}"
        return self.exports / (f"{name}-{quantization}" if kind == "ollama" else name)

    @property
    def logs(self) -> Path:
        """Logs of child processes."""
        return self.state / "logs"

    @property
    def plots(self) -> Path:
        """Plots of A/B tests."""
        return self.state / "plots"

    @property
    def reports(self) -> Path:
        """One Markdown page for each finished test."""
        return self.state / "reports"

    @property
    def conport_database(self) -> Path:
        """ConPort's SQLite file; ours to read only."""
        return self.root / "context_portal" / "context.db"

    @property
    def conport_vectors(self) -> Path:
        """The Chroma folder of ConPort's own semantic search."""
        return self.root / "context_portal" / "conport_vector_data"

    @property
    def conport_vectors_backup(self) -> Path:
        """That folder as ConPort had made it, before vectors of a tuned model took its place."""
        return self.conport_vectors.with_name("conport_vector_data.backup")

    @property
    def conport_model_cache(self) -> Path:
        """HF_HOME of a ConPort that searches with a tuned model."""
        return self.state / "conport-model"

    @property
    def conport_log(self) -> Path:
        """The log of our own ConPort process."""
        return self.logs / "conport.log"

    @property
    def conport_stderr(self) -> Path:
        """What our own ConPort process wrote to stderr."""
        return self.logs / "conport-stderr.log"

    @property
    def empty_model_cache(self) -> Path:
        """A model cache without models: a ConPort that sees only this one never embeds."""
        return self.state / "no-models"

    @property
    def training_data(self) -> Path:
        """Data sets (TRAINING_DATA_PATH)."""
        return self._configured(self.settings.training_data_path, "TRAINING_DATA_PATH")

    @property
    def models(self) -> Path:
        """Model versions (FINETUNED_MODELS_PATH)."""
        return self._configured(self.settings.finetuned_models_path, "FINETUNED_MODELS_PATH")

    def job(self, job_id: str) -> JobPaths:
        """The files of a job; the id must already have been checked against the job table."""
        return JobPaths(self.state / "jobs" / job_id)

    def prepare(self) -> None:
        """Create the state folder with its own `.gitignore`; safe to repeat."""
        self.state.mkdir(parents=True, exist_ok=True)
        ignore = self.state / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n", encoding="utf-8")

    def inside(self, path: str | Path) -> Path:
        """Resolve a path given by a caller and refuse it unless it stays inside the workspace.

        Args:
            path: relative to the workspace, or absolute inside it.

        Returns:
            The absolute path.

        Raises:
            PathOutsideWorkspace: it leaves the workspace, also through a symbolic link.
            InvalidInput: it is empty or contains a NUL byte.
        """
        text = str(path)
        if not text or "\0" in text:
            raise InvalidInput(f"The path {text!r} is empty or contains a NUL byte.")
        candidate = Path(os.path.abspath(self.root / text))
        real_root = self.root.resolve()
        if not candidate.resolve().is_relative_to(real_root):
            raise PathOutsideWorkspace(f"The path {text!r} is outside the workspace {self.root}.")
        return candidate

    def relative(self, path: Path) -> str:
        """The path as shown to users: relative to the workspace with a leading `./` where it is inside."""
        absolute = Path(os.path.abspath(path))
        return (
            f"./{absolute.relative_to(self.root).as_posix()}"
            if absolute.is_relative_to(self.root)
            else str(absolute)
        )

    def _configured(self, value: str, variable: str) -> Path:
        try:
            return self.inside(value)
        except PathOutsideWorkspace as error:
            raise PathOutsideWorkspace(
                f"{variable}={value!r} is outside the workspace {self.root}."
            ) from error


def manifest_path(folder: Path) -> Path:
    """`ragtune.json` of a model version's folder: its lineage and the sha256 of every other file."""
    return folder / "ragtune.json"


def plain_name(version: str) -> str:
    """A version id, which may be that of a folder, as one part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", version).strip(".-")


def new_id(prefix: str, now: datetime | None = None) -> str:
    """`<prefix>_YYYYMMDD_HHMMSS_xxxxxxxx`: readable, sortable, 32 random bits against collisions in a second."""
    return f"{prefix}_{(now or utc_now()):%Y%m%d_%H%M%S}_{secrets.token_hex(4)}"


def new_handle(prefix: str) -> str:
    """An unguessable id (96 random bits) for things whose id grants something."""
    return f"{prefix}_{secrets.token_hex(12)}"


def sha256_text(text: str) -> str:
    """Hex sha256 of the UTF-8 text; lone surrogates are replaced so that any Python string has a hash."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
