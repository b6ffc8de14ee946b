"""Every error the project raises on purpose.

    RagTuneError
      InvalidInput            a value the caller can correct
        PathOutsideWorkspace
        FeedbackInvalid       (raised per row while reading; carries a countable reason)
      UnknownId               a job, version, test, query or data set that does not exist
      NotEnoughData           fewer samples than the stage needs
      FeatureDisabled         switched off by an environment variable
      Conflict                the request clashes with the present state
        GateBlocked
      NotReady                will work later: encoder warming up, index building
      IntegrityError          files or vectors are not what was recorded
        DigestMismatch · WrongEmbedder · ExportMismatch · LeakySplit
      JobFailed
      JobCancelled
      ServiceUnavailable      another program does not answer
        ConPortUnavailable · ChromaUnavailable · OllamaUnavailable · ModelUnavailable

Raise where the problem is known; catch only where it can be repaired. The surfaces translate a
`RagTuneError` in one place each; nothing is ever returned as an error value.
"""

from __future__ import annotations


class RagTuneError(Exception):
    """Base of all deliberate errors: a stable code, what was wrong (with the value), and what to do next."""

    code = "error"
    default_hint = ""

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint
        if code:
            self.code = code

    def __str__(self) -> str:
        text = f"[{self.code}] {self.message}"
        return f"{text} Hint: {self.hint}" if self.hint else text


class InvalidInput(RagTuneError):
    """A value the caller can correct; the message repeats it."""

    code = "invalid_input"
    default_hint = "Correct the value and repeat the call."


class PathOutsideWorkspace(InvalidInput):
    """A path that leaves the workspace, by `..`, a symbolic link or an absolute name."""

    code = "path_outside_workspace"
    default_hint = "Name a path inside the workspace."


class FeedbackInvalid(InvalidInput):
    """One feedback entry that cannot be used; `reason` is a countable snake_case word."""

    code = "feedback_invalid"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class UnknownId(RagTuneError):
    """An id that names nothing here; `code` says of which kind, e.g. `unknown_job`."""

    code = "unknown_id"
    default_hint = "Check the id; list_models and the resource ragtune://status name what exists."


class NotEnoughData(RagTuneError):
    """Fewer samples than the stage needs."""

    code = "not_enough_data"
    default_hint = "Collect more ratings: search, then record_feedback."


class FeatureDisabled(RagTuneError):
    """The feature is switched off by an environment variable."""

    code = "feature_disabled"
    default_hint = "Set the variable to true and restart the server."


class Conflict(RagTuneError):
    """The request clashes with the present state, e.g. a second running test."""

    code = "conflict"
    default_hint = "Read the resource ragtune://status, then decide anew."


class GateBlocked(Conflict):
    """The version did not pass the offline gate and no forced reason was given."""

    code = "gate_blocked"


class NotReady(RagTuneError):
    """The same call will work later; the hint says when or how to find out."""

    code = "not_ready"
    default_hint = "Repeat the call in a few seconds."


class IntegrityError(RagTuneError):
    """Files or vectors are not what was recorded."""

    code = "integrity"
    default_hint = "Restore the files, or build them again."


class DigestMismatch(IntegrityError):
    """A file of a model version or data set does not have its recorded sha256."""

    code = "digest_mismatch"


class WrongEmbedder(IntegrityError):
    """Vectors of one model met a collection of another."""

    code = "wrong_embedder"


class ExportMismatch(IntegrityError):
    """An exported model does not reproduce its source within the threshold."""

    code = "export_mismatch"


class LeakySplit(IntegrityError):
    """A query group stands in more than one split."""

    code = "leaky_split"


class JobFailed(RagTuneError):
    """A background job ended in failure."""

    code = "job_failed"
    default_hint = "Its log stands in the job's folder."


class NotEnoughMemory(JobFailed):
    """A run does not fit into the memory that is free now; the same run may fit later."""

    code = "not_enough_memory"


class JobCancelled(RagTuneError):
    """Raised inside a worker when its job was cancelled; never reaches a client as an error."""

    code = "job_cancelled"


class ServiceUnavailable(RagTuneError):
    """Another program does not answer; the call may be repeated."""

    code = "service_unavailable"
    default_hint = "Start the service, then repeat the call."


class ConPortUnavailable(ServiceUnavailable):
    """ConPort could not be reached; writes wait in the outbox."""

    code = "conport_unavailable"


class ChromaUnavailable(ServiceUnavailable):
    """The vector store could not be reached."""

    code = "chroma_unavailable"


class OllamaUnavailable(ServiceUnavailable):
    """No Ollama answers at OLLAMA_HOST."""

    code = "ollama_unavailable"


class ModelUnavailable(ServiceUnavailable):
    """A base model name could not be resolved to files."""

    code = "model_unavailable"
