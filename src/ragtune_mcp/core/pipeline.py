"""What each kind of background job does. Runs inside a worker process; the only place that drives torch.

finetune   data set -> tuned model -> gate -> registered version -> encoder -> its own index
distill    version -> student of fewer layers -> gate against its teacher -> as above
index      sources -> documents -> the collections of champion and challenger (or of one version)
export     version -> GGUF or ONNX, with its parity report
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ragtune_mcp.core.app import RagTune
from ragtune_mcp.core.dataset.export import load_dataset
from ragtune_mcp.core.dataset.pairs import Dataset
from ragtune_mcp.core.errors import (
    ChromaUnavailable,
    Conflict,
    IntegrityError,
    JobCancelled,
    ModelUnavailable,
    NotEnoughMemory,
    RagTuneError,
)
from ragtune_mcp.core.finetune.base import BaseModel, resolve_base_model
from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.distillation import distill
from ragtune_mcp.core.finetune.tuning import FineTuneResult, fine_tune
from ragtune_mcp.core.jobs.worker import JobContext
from ragtune_mcp.core.models.exporters.onnx import export_onnx
from ragtune_mcp.core.models.files import write_json
from ragtune_mcp.core.models.registry import ModelVersion
from ragtune_mcp.core.retrieval.reindex import build_collection, plan_index, storing, update_collections
from ragtune_mcp.core.retrieval.search import SearchHit

Handler = Callable[[RagTune, JobContext], dict[str, Any]]
# (data set, corpus, base, output=, report=, cancelled=, checkpoints=) -> what the run leaves behind.
Train = Callable[..., FineTuneResult]

# Share of the progress bar when training ends; the rest is registering and indexing the new version.
_TRAINED = 0.75
# The workspace's own, on which an export must rank as its source does.
_EXPORT_QUERIES, _EXPORT_TEXTS, _EXPORT_NEAREST = 100, 300, 10


def finetune_job(app: RagTune, ctx: JobContext) -> dict[str, Any]:
    """Train, evaluate, gate, register and index one version."""
    config = FineTuningConfig(**ctx.job.spec["config"])
    return _new_version(app, ctx, partial(fine_tune, config=config))


def distill_job(app: RagTune, ctx: JobContext) -> dict[str, Any]:
    """The same for a student of a version; the gate asks whether it keeps up with its teacher."""
    return _new_version(app, ctx, partial(distill, layers=ctx.job.spec["layers"]))


def _new_version(app: RagTune, ctx: JobContext, train: Train) -> dict[str, Any]:
    spec = ctx.job.spec
    dataset = load_dataset(Path(spec["training_data_path"]))
    base = _base(app, spec["config"]["base_model_name"])
    version = _version(ctx)
    app.log_training(ctx.job, {"status": "running", "model_version": version})
    output = app.workspace.inside(spec["config"]["output_model_path"]) / version
    tuned = _trained(app, ctx, train, dataset, base, output)
    gate = tuned["gate"]
    model = app.registry.register(
        version,
        output,
        kind="tuned",
        base_model=base.version,
        dataset_id=dataset.dataset_id,
        job_id=ctx.job.job_id,
        metrics=tuned["metrics"],
        gate=gate,
        feedback_ids=sorted({i for pair in dataset.pairs for i in pair.feedback_ids}),
        config={**spec["config"], "layers": spec["layers"]} if "layers" in spec else spec["config"],
    )
    app.outbox.put_custom_data("ModelVersions", version, _lineage(model))
    ctx.progress(_TRAINED + 0.02, f"registered {version}; gate: {gate['verdict']}")
    if gate["verdict"] != "block":
        _ensure_index(app, ctx, model, _TRAINED + 0.02)
        app.registry.set_alias("challenger", version, actor=ctx.job.kind, reason=f"gate {gate['verdict']}")
        _prune(app, ctx)
    shutil.rmtree(ctx.paths.checkpoints, ignore_errors=True)
    return {
        "model_version": version,
        "model_path": str(model.path),
        **tuned,
        "dataset_id": dataset.dataset_id,
    }


def _version(ctx: JobContext) -> str:
    # Of the job, not of the attempt: what a killed attempt left behind is found again.
    return f"{ctx.job.spec['model_name_suffix']}_{ctx.job.job_id.partition('_')[2]}"


def _trained(
    app: RagTune, ctx: JobContext, train: Train, dataset: Dataset, base: ModelVersion, output: Path
) -> dict[str, Any]:
    """Train into `output`, or take what an earlier attempt of this job has trained.

    Checkpoints stay exactly as long as asking again would go on from them: after a cancellation, the death of
    the worker or a want of memory, not once the model is saved, and not after an error that asking again would
    only repeat.
    """
    if ctx.paths.trained.exists() and output.exists():
        found: dict[str, Any] = json.loads(ctx.paths.trained.read_text(encoding="utf-8"))
        return found
    # Of an attempt that was killed between saving the model and noting what it found.
    shutil.rmtree(output, ignore_errors=True)
    try:
        tuned = train(
            dataset,
            app.documents.all_texts(),
            BaseModel(base.version, base.path),
            output=output,
            report=lambda share, message, fields: ctx.progress(share * _TRAINED, message, **fields),
            cancelled=ctx.check_cancelled,
            checkpoints=ctx.paths.checkpoints,
        )
    except (JobCancelled, NotEnoughMemory):
        raise
    except Exception:
        shutil.rmtree(ctx.paths.checkpoints, ignore_errors=True)
        raise
    found = {
        "training_duration": round(tuned.duration_s, 2),
        "metrics": tuned.metrics,
        "history": [entry.to_dict() for entry in tuned.history],
        "gate": tuned.gate.to_dict(),
        "evaluation": tuned.evaluation,
        "chosen": tuned.chosen,
    }
    write_json(ctx.paths.trained, found)
    shutil.rmtree(ctx.paths.checkpoints, ignore_errors=True)
    return found


def index_job(app: RagTune, ctx: JobContext) -> dict[str, Any]:
    """Index documents, or build the collection of one version (`spec["version"]`)."""
    spec = ctx.job.spec
    if spec.get("version"):
        model = app.registry.get(spec["version"])
        _ensure_index(app, ctx, model, 0.0)
        _prune(app, ctx)
        return {"version": model.version, "documents": app.index.count(model.version)}
    champion = app.registry.alias("champion")
    model = app.registry.get(champion) if champion else _base(app, app.settings.base_model_name)
    versions = list(dict.fromkeys([model.version, *app.serving_versions()]))
    for version in versions:
        _ensure_encoder(app, ctx, app.registry.get(version))
    ctx.progress(0.01, "reading the sources")
    with storing(app.workspace, cancelled=ctx.check_cancelled):
        plan = plan_index(
            app.workspace,
            app.documents,
            paths=tuple(spec["paths"]),
            source=spec["source"],
            conport=lambda: app.conport,
        )
        app.documents.apply(plan)
    update_collections(
        app.documents,
        app.index,
        app.encoders,
        versions,
        progress=lambda share, message: ctx.progress(0.05 + 0.94 * share, message),
        cancelled=ctx.check_cancelled,
    )
    app.catch_up_with_switches(versions)
    if champion is None:
        app.registry.set_alias("champion", model.version, actor="index", reason="first index")
    _prune(app, ctx)
    return {**plan.counts(), "version": model.version}


def export_job(app: RagTune, ctx: JobContext) -> dict[str, Any]:
    """Export one version and prove that it gives the same vectors."""
    from ragtune_mcp.core.models.exporters.ollama import export_ollama

    spec = ctx.job.spec
    model = app.registry.verify(spec["version"])
    target = app.workspace.export(model.version, spec["format"], spec["quantization"])
    ctx.progress(0.1, f"writing {spec['format']}")
    if spec["format"] == "onnx":
        return export_onnx(model.path, target)
    queries = app.service.recent_queries(_EXPORT_QUERIES)
    return export_ollama(
        model.path,
        spec["name"],
        target,
        quantization=spec["quantization"],
        texts=_export_texts(app, ctx, queries),
        queries=queries,
        host=app.settings.ollama_host,
        base_folder=_base_folder(app, ctx, model),
    )


def _export_texts(app: RagTune, ctx: JobContext, queries: Sequence[str]) -> list[str]:
    """Documents that an export is compared on: what the queries find at present, then others at random."""
    documents, champion = app.documents.all_texts(), app.registry.alias("champion")
    found: list[list[SearchHit]] = []
    if queries and champion:
        try:
            app.encoders.get(champion, wait_s=120)
            found = app.searcher.search_all(champion, queries, _EXPORT_NEAREST)
        except RagTuneError as error:
            ctx.event(f"compared on documents at random, not on those the queries find: {error.message}")
    # By rank, so that every query has its best before any has its tenth.
    nearest = [hits[rank].id for rank in range(_EXPORT_NEAREST) for hits in found if rank < len(hits)]
    others = random.Random(0).sample(list(documents), len(documents))
    ids = [doc_id for doc_id in dict.fromkeys([*nearest, *others]) if doc_id in documents]
    return [documents[doc_id] for doc_id in ids[: _EXPORT_TEXTS - len(queries)]]


def _base(app: RagTune, name: str) -> ModelVersion:
    if app.registry.has(name):
        return app.registry.verify(app.registry.resolve(name).version)
    found = resolve_base_model(name, app.workspace.root, app.settings.ragtune_allow_downloads)
    return app.registry.register_base(found.name, found.path)


def _base_folder(app: RagTune, ctx: JobContext, model: ModelVersion) -> Path | None:
    try:
        return app.registry.verify(model.base_model).path
    except (ModelUnavailable, IntegrityError) as error:
        # The export's distance from its base is told besides; it says nothing against the file.
        ctx.event(f"not compared with the base model: {error.message}")
        return None


def _exported_base(app: RagTune, model: ModelVersion) -> tuple[Path, Path] | None:
    if model.base_model == model.version or not app.registry.has(model.base_model):
        return None
    path = app.registry.get(model.base_model).path
    is_there = path.is_dir() and app.encoders.is_exported(model.base_model)
    return (path, app.encoders.folder(model.base_model)) if is_there else None


def _ensure_encoder(app: RagTune, ctx: JobContext, model: ModelVersion) -> None:
    if not app.encoders.is_exported(model.version):
        ctx.event(f"exporting the serving encoder of {model.version}")
        folder = app.encoders.folder(model.version)
        export_onnx(app.registry.verify(model.version).path, folder, _exported_base(app, model))
    app.encoders.get(model.version, wait_s=120)


def _ensure_index(app: RagTune, ctx: JobContext, model: ModelVersion, start: float) -> None:
    _ensure_encoder(app, ctx, model)
    build_collection(
        app.index,
        app.documents,
        model.version,
        app.encoders.get(model.version, wait_s=120),
        progress=lambda share, message: ctx.progress(start + (0.99 - start) * share, message),
        cancelled=ctx.check_cancelled,
    )


def _prune(app: RagTune, ctx: JobContext) -> None:
    try:
        removed = app.prune_index()
    except (ChromaUnavailable, Conflict) as error:
        ctx.event(f"superseded collections stay until the next job: {error.message}")
        return
    if removed:
        ctx.event(f"removed {len(removed)} superseded collections", collections=removed)


def _lineage(model: ModelVersion) -> dict[str, Any]:
    return {
        "version": model.version,
        "base_model": model.base_model,
        "dataset_id": model.dataset_id,
        "job_id": model.job_id,
        "digest": model.digest,
        "metrics": model.metrics,
        "gate": model.gate,
        "created_at": model.created_at,
    }


HANDLERS: dict[str, Handler] = {
    "finetune": finetune_job,
    "distill": distill_job,
    "index": index_job,
    "export": export_job,
}
