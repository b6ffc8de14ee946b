"""Verbs of deployment: list, promote, roll back, export."""

from __future__ import annotations

from typing import Literal

from ragtune_mcp.core.clock import to_iso
from ragtune_mcp.core.errors import Conflict, InvalidInput
from ragtune_mcp.core.experiment.ramp import RAMP_LENGTH, RAMP_SHARE
from ragtune_mcp.core.models.exporters.ollama import check_name
from ragtune_mcp.core.models.registry import ModelVersion
from ragtune_mcp.core.results import (
    ExportResult,
    GateResult,
    ModelInfo,
    ModelList,
    StatusResult,
    SwitchResult,
)
from ragtune_mcp.core.verbs.retrieval import RetrievalVerbs
from ragtune_mcp.core.workspace import plain_name

SwitchAction = Literal["promote", "rollback"]


class ModelVerbs(RetrievalVerbs):
    """list_models, promote_model, rollback_model, export_model, and the status at a glance."""

    def list_models(self) -> ModelList:
        """Registered versions, newest first, with their lineage."""
        return ModelList(
            models=[self._info(model) for model in self.registry.list()],
            champion=self.registry.alias("champion"),
            challenger=self.registry.alias("challenger"),
        )

    def model(self, version: str) -> ModelInfo:
        """One registered version."""
        return self._info(self.registry.get(version))

    def promote_model(
        self, version: str, *, confirm: bool = False, force: bool = False, reason: str = ""
    ) -> SwitchResult:
        """Let a version answer all queries; without `confirm` only say what would happen."""
        target = self.registry.resolve(version)
        current = self.champion()
        if target.version == current:
            raise Conflict(f"{version} is already the champion.", hint="See list_models.")
        forced = self.require_gate(target, force, reason)
        checks = self._check(target, "promote")
        if forced:
            checks.append(f"gate verdict block overridden: {forced}")
        if target.kind != "base" and target.base_model != current:
            checks.append(
                f"its gate compared it with {target.base_model}, not with the champion {current}; an A/B test does that"
            )
        return self._switch("promote", current, target.version, checks, confirm, reason)

    def rollback_model(self, version: str = "", *, confirm: bool = False, reason: str = "") -> SwitchResult:
        """Return to the previous champion, or to the one named; it is verified before anything moves."""
        current = self.champion()
        previous = version or self.registry.previous_champion()
        if previous is None:
            raise Conflict("There is no earlier champion to roll back to.", hint="See list_models.")
        target = self.registry.resolve(previous)
        if target.version == current:
            raise Conflict(f"{target.version} is already the champion.", hint="See list_models.")
        if target.version not in self.registry.audit.ever("champion"):
            raise Conflict(
                f"{target.version} never was the champion, so nothing can be rolled back to it.",
                hint=f"Call promote_model with version={target.version!r}.",
            )
        return self._switch(
            "rollback", current, target.version, self._check(target, "rollback"), confirm, reason
        )

    def export_model(
        self,
        version: str,
        *,
        format: Literal["ollama", "onnx"] = "ollama",
        name: str = "",
        quantization: str = "f16",
    ) -> ExportResult:
        """Write a version in another format, in the background, and check that it gives the same vectors."""
        model = self.registry.resolve(version)
        if format not in ("ollama", "onnx"):
            raise InvalidInput(f"format {format!r} is not one of 'ollama', 'onnx'.")
        if quantization not in ("f16", "q8_0", "f32"):
            raise InvalidInput(f"quantization {quantization!r} is not one of 'f16', 'q8_0', 'f32'.")
        name = name or f"ragtune-{plain_name(model.version)}".lower()
        check_name(name)
        self.registry.verify(model.version)
        job = self.submit_once(
            "export", {"version": model.version, "format": format, "name": name, "quantization": quantization}
        )
        return ExportResult(
            version=model.version,
            format=format,
            job_id=job.job_id,
            next_step=f"Call job_status with job_id={job.job_id!r} and wait_s=30; its result names the files.",
        )

    def status(self) -> StatusResult:
        """The workspace at a glance."""
        trial = self.trials.active()
        return StatusResult(
            workspace=self.workspace.id,
            version=self._version(),
            champion=self.registry.alias("champion"),
            documents=self.documents.count(),
            running_jobs=[job.job_id for job in self.jobs.unfinished()],
            active_test=trial.test_id if trial else None,
            outbox_pending=self.outbox.pending(),
            outbox_error=self.outbox.last_error(),
        )

    @staticmethod
    def _version() -> str:
        from ragtune_mcp import __version__

        return __version__

    def _check(self, target: ModelVersion, action: SwitchAction) -> list[str]:
        self._refuse_during_test(action)
        self.registry.verify(target.version)
        self.require_index(target)
        self.encoders.check(target.version)
        return [
            "files match their recorded sha256",
            "its encoder encodes the probe texts to the recorded vectors",
            f"index complete: {self.index.count(target.version)} documents",
            "no test is running",
        ]

    def _refuse_during_test(self, action: SwitchAction) -> None:
        trial = self.trials.active()
        if trial is not None and trial.status == "ramping":
            if action == "rollback":
                return
            raise Conflict(
                f"The ramp of {trial.test_version} is running until {to_iso(trial.ramp_ends_at or trial.ends_at)}.",
                hint="Wait for it, or call rollback_model first.",
            )
        if trial is not None:
            raise Conflict(
                f"Test {trial.test_id} is running.",
                hint=f"Read ab_results, or call stop_ab_test(test_id={trial.test_id!r}, reason=...) first.",
            )

    def _switch(
        self, action: SwitchAction, current: str, target: str, checks: list[str], confirm: bool, reason: str
    ) -> SwitchResult:
        if not confirm:
            return SwitchResult(
                action=action,
                from_version=current,
                to_version=target,
                changed=False,
                checks=checks,
                will_change=[
                    f"champion: {current} -> {target}",
                    _pace(action, self.ramp.due_for(current, target)),
                    "a decision is logged in ConPort",
                ],
                next_step=f"Repeat {action}_model with confirm=true to do it.",
            )
        with self.db.transaction():
            if self.registry.alias("champion") != current:
                raise Conflict(
                    "Another process changed the champion meanwhile.", hint="See list_models and repeat."
                )
            self._refuse_during_test(action)
            self.require_still_indexed(target)
            self._end_ramp(action)
            entry = self.registry.set_alias(
                "champion",
                target,
                actor="user",
                reason=reason,
                action="rollback" if action == "rollback" else "set",
            )
            if self.registry.alias("challenger") == target:
                self.registry.clear_alias("challenger", actor=action, reason="promoted")
            won = self.ramp.due_for(current, target) if action == "promote" else ""
            if won:
                self._log_trial(self.ramp.begin(won), {})
            self.outbox.put_decision(
                summary=f"{action.capitalize()}: {current} -> {target}",
                rationale=reason or "; ".join(checks),
                tags=("ragtune", "model", action),
                link_to=("custom_data", f"ModelVersions:{target}"),
                dedupe_key=f"{action}:{entry}",
            )
        return SwitchResult(
            action=action,
            from_version=current,
            to_version=target,
            changed=True,
            checks=checks,
            will_change=[],
            next_step="Call rollback_model to undo." if action == "promote" else "Call search.",
        )

    def _end_ramp(self, action: SwitchAction) -> None:
        trial = self.trials.active()
        if trial is not None and action == "rollback":
            self._log_trial(self.trials.stop(trial.test_id, "rolled back by hand"), {})

    def _info(self, model: ModelVersion) -> ModelInfo:
        return ModelInfo(
            version=model.version,
            kind=model.kind,
            path=self.workspace.relative(model.path),
            digest=model.digest,
            base_model=model.base_model,
            created_at=model.created_at,
            dataset_id=model.dataset_id,
            job_id=model.job_id,
            metrics=dict(model.metrics),
            gate=GateResult(**model.gate) if model.gate else None,
            aliases=[
                alias for alias in ("champion", "challenger") if self.registry.alias(alias) == model.version
            ],
            indexed=self.index.is_ready(model.version),
            stale=model.stale,
        )


def _pace(action: SwitchAction, won_test: str) -> str:
    if action == "rollback" or not won_test:
        return "all searches use the new index at once"
    hours = RAMP_LENGTH.total_seconds() / 3600
    return f"{RAMP_SHARE:.0%} of searches use it for {hours:.0f} h, then all; harm rolls it back by itself"
