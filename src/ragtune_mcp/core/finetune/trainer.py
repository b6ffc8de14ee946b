"""The training loop over `FastBackbone`: AdamW with linear warm-up and decay, best weights kept, resumable.

Batches follow from seed and epoch alone, so a resumed run takes the same steps as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtune_mcp.core.errors import JobCancelled, JobFailed
from ragtune_mcp.core.finetune.backbone import FastBackbone
from ragtune_mcp.core.finetune.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ragtune_mcp.core.finetune.config import TrainingMetrics
from ragtune_mcp.core.finetune.objectives import Batch, Objective
from ragtune_mcp.core.finetune.recipe import Recipe
from ragtune_mcp.core.finetune.selection import KeptStep

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

Validate = Callable[[Mapping[str, "Tensor"]], np.ndarray]
# Texts and trainable weights -> (n, dim) unit vectors; None for the base weights.
Read = Callable[[Sequence[str], "Mapping[str, Tensor] | None"], np.ndarray]
_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """Progress after one optimizer step; `eval_score` where it was followed by a validation."""

    step: int
    steps: int
    epoch: float
    loss: float
    tokens: int
    eval_score: float | None = None


@dataclass(slots=True)
class Trained:
    """What training leaves behind.

    Attributes:
        weights: the best weights by validation score, the last ones where nothing was validated.
        history: one entry per epoch and validation.
        best_step: the step of `weights`.
        scores: (n,) validation scores of `weights`; empty where nothing was validated.
        stopped_early: whether patience ran out.
    """

    weights: Mapping[str, Tensor]
    history: list[TrainingMetrics]
    steps: int
    best_step: int
    best_score: float | None
    final_loss: float
    stopped_early: bool
    scores: np.ndarray


@dataclass(slots=True)
class _Run:
    """Counters that a checkpoint carries."""

    kept: KeptStep
    step: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[TrainingMetrics] = field(default_factory=list)
    stopped_early: bool = False
    elapsed_s: float = 0.0

    @property
    def validated(self) -> bool:
        """Whether the last step was followed by its validation."""
        return bool(self.history) and self.history[-1].step == self.step


class FastTrainer:
    """One training run; `run()` once.

    Args:
        backbone: its frozen layers are set already.
        objective: examples and loss.
        recipe: rate, epochs, batch size, seed.
        micro_tokens: tokens embedded with gradients at once; a larger batch is embedded twice, in parts, with
            the same gradient and bounded memory (gradient cache, Gao et al. 2021).
        read: gives the vectors of fixed texts; may raise to stop. The backbone's own by default.
        on_part: called before each part of a batch; may raise to stop.
    """

    def __init__(
        self,
        backbone: FastBackbone,
        objective: Objective,
        recipe: Recipe,
        *,
        micro_tokens: int,
        read: Read | None = None,
        on_part: Callable[[], None] = lambda: None,
    ) -> None:
        import torch

        self._backbone = backbone
        self._objective = objective
        self._recipe = recipe
        self._micro_tokens = micro_tokens
        self._read = read or backbone.encode
        self._on_part = on_part
        self._names = backbone.trainable()
        self._weights = {name: backbone.base_weights[name].clone().requires_grad_() for name in self._names}
        self._optimizer = torch.optim.AdamW(
            list(self._weights.values()), lr=recipe.learning_rate, weight_decay=0.0, fused=True
        )
        self._per_epoch = math.ceil(len(objective) / recipe.batch_size)
        self.steps = self._per_epoch * recipe.epochs
        self._best: dict[str, Tensor] = {}
        self._fixed: Tensor | None = None

    def run(
        self,
        *,
        validate: Validate | None,
        on_step: Callable[[Step], None],
        checkpoints: Path | None = None,
        judged_by: str = "",
    ) -> Trained:
        """Train to the end, or until patience runs out.

        Args:
            validate: (n,) scores of trainable weights, one per query, higher is better; None to keep the last
                weights.
            on_step: called after every step; may raise to stop. JobCancelled, wherever it is raised, keeps the
                state in a checkpoint, the best weights so far among it.
            checkpoints: where to save and resume; None for neither.
            judged_by: identifies what `validate` scores on; scores on anything else are not gone on from.

        Returns:
            The best weights and the history.

        Raises:
            JobFailed: training diverged.
        """
        fingerprint = self._fingerprint(judged_by) if checkpoints else ""
        fresh = _Run(self._recipe.kept_step())
        run = (self._resume(checkpoints, fingerprint) if checkpoints else None) or fresh
        started = time.monotonic() - run.elapsed_s
        if run.step and self._is_due(run.step) and not run.validated:
            # It was cancelled in the middle of this one.
            self._set_rate(run.step - 1)
            self._validate(run, validate)
        while run.step < self.steps and not run.stopped_early:
            try:
                loss, tokens = self._step(run.step)
                run.step += 1
                run.losses.append(loss)
                run.elapsed_s = time.monotonic() - started
                if self._is_due(run.step):
                    self._validate(run, validate)
                score = run.history[-1].eval_score if run.validated else None
                on_step(Step(run.step, self.steps, run.step / self._per_epoch, loss, tokens, score))
            except JobCancelled:
                if checkpoints and run.step:
                    self._save(checkpoints, fingerprint, run)
                raise
            epoch_end = run.step % self._per_epoch == 0
            if checkpoints and (epoch_end or run.step % self._recipe.save_steps == 0):
                self._save(checkpoints, fingerprint, run)
        weights = self._best or self._snapshot()
        return Trained(
            weights,
            run.history,
            run.step,
            run.kept.step or run.step,
            run.kept.score,
            run.history[-1].train_loss if run.history else math.nan,
            run.stopped_early,
            np.array(run.kept.scores),
        )

    def _step(self, step: int) -> tuple[float, int]:
        """The step after `step` others; its loss and tokens. No weight has changed where it raises."""
        import torch

        if self._objective.fixed and step % self._per_epoch == 0:
            vectors = self._read(self._objective.fixed, self._detached() if step else None)
            self._fix(torch.from_numpy(vectors))
        batch = self._batch(step)
        self._set_rate(step)
        tokens = int(self._backbone.table.lengths(self._backbone.table.rows(batch.texts)).sum())
        return self._update(batch), tokens

    def _is_due(self, step: int) -> bool:
        return step % self._per_epoch == 0 or step % self._recipe.evaluation_steps == 0

    def _batch(self, step: int) -> Batch:
        epoch, position = divmod(step, self._per_epoch)
        order = np.random.default_rng([self._recipe.seed, epoch]).permutation(len(self._objective))
        size = self._recipe.batch_size
        return self._objective.batch([int(index) for index in order[position * size : (position + 1) * size]])

    def _set_rate(self, step: int) -> None:
        self._optimizer.param_groups[0]["lr"] = self._recipe.learning_rate * schedule(
            step, self.steps, self._recipe.warmup_steps
        )

    def _update(self, batch: Batch) -> float:
        import torch

        self._on_part()
        rows = self._backbone.table.rows(batch.texts)
        lengths = self._backbone.table.lengths(rows)
        if int(lengths.sum()) <= self._micro_tokens:
            loss = self._objective.loss(self._backbone.embed(rows, self._weights), batch.layout)
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            with torch.no_grad():
                vectors = self._backbone.embed(rows, self._weights)
            vectors.requires_grad_()
            loss = self._objective.loss(vectors, batch.layout)
            loss.backward()  # type: ignore[no-untyped-call]
            for part in _parts(lengths, self._micro_tokens):
                self._on_part()
                gradient = vectors.grad[torch.from_numpy(part)]  # type: ignore[index]
                torch.autograd.backward(self._backbone.embed(rows[part], self._weights), gradient)
        norm = float(torch.nn.utils.clip_grad_norm_(self._weights.values(), _GRADIENT_NORM))
        if not math.isfinite(norm):
            raise diverged(float(loss.detach()), self._recipe.learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _validate(self, run: _Run, validate: Validate | None) -> None:
        scores = validate(self._detached()) if validate else None
        run.history.append(
            TrainingMetrics(
                step=run.step,
                epoch=round(run.step / self._per_epoch, 4),
                train_loss=float(np.mean(run.losses)),
                learning_rate=self._optimizer.param_groups[0]["lr"],
                eval_score=None if scores is None else float(scores.mean()),
                elapsed_s=round(run.elapsed_s, 2),
            )
        )
        run.losses.clear()
        if scores is None:
            return
        if run.kept.see(run.step, scores):
            self._best = self._snapshot()
        run.stopped_early = run.kept.exhausted

    def _fix(self, vectors: Tensor) -> None:
        self._fixed = vectors
        self._objective.fix(vectors)

    def _detached(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self._weights.items()}

    def _snapshot(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self._weights.items()}

    def _fingerprint(self, judged_by: str) -> str:
        precision = str(self._backbone.dtype)
        digest = hashlib.sha256(
            repr((self._recipe, self._names, self._backbone.max_tokens, precision, judged_by)).encode()
        )
        for step in range(self._per_epoch):
            batch = self._batch(step)
            for text in batch.texts:
                digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
            _fold(digest, batch.layout)
        for text in self._objective.fixed:
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        for name in self._names[:1]:
            digest.update(self._backbone.base_weights[name].numpy().tobytes())
        return digest.hexdigest()

    def _save(self, folder: Path, fingerprint: str, run: _Run) -> None:
        moments = [self._optimizer.state[weight] for weight in self._weights.values()]
        tensors = {
            "weights": self._snapshot(),
            "first": {name: state["exp_avg"] for name, state in zip(self._names, moments, strict=True)},
            "second": {name: state["exp_avg_sq"] for name, state in zip(self._names, moments, strict=True)},
            "best": self._best,
            # Those of the epoch's start, which the weights of its middle would not give again.
            "fixed": {} if self._fixed is None else {"vectors": self._fixed},
        }
        state = {
            "step": run.step,
            "kept": asdict(run.kept),
            "losses": run.losses,
            "history": [entry.to_dict() for entry in run.history],
            "stopped_early": run.stopped_early,
            "elapsed_s": run.elapsed_s,
        }
        save_checkpoint(folder, run.step, fingerprint, Checkpoint(tensors, state))

    def _resume(self, folder: Path, fingerprint: str) -> _Run | None:
        import torch

        found = load_checkpoint(folder, fingerprint)
        if found is None:
            return None
        state = dict(found.state)
        state["history"] = [TrainingMetrics(**entry) for entry in state["history"]]
        state["kept"] = KeptStep(**state["kept"])
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(found.tensors["weights"][name])
                self._optimizer.state[weight] = {
                    "step": torch.tensor(float(state["step"])),
                    "exp_avg": found.tensors["first"][name],
                    "exp_avg_sq": found.tensors["second"][name],
                }
        self._best = dict(found.tensors.get("best", {}))
        if "fixed" in found.tensors:
            self._fix(found.tensors["fixed"]["vectors"])
        logger.info("resumed at step %d of %d", state["step"], self.steps)
        return _Run(**state)


def schedule(step: int, steps: int, warmup: int) -> float:
    """Share of the peak rate at a step: linear from 0 over the warm-up, then linear to 0 at the end."""
    if step < warmup:
        return step / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))


def interpolate(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """`(1 - alpha) base + alpha tuned` for every tuned weight (Wortsman et al. 2022, WiSE-FT)."""
    import torch

    return {name: torch.lerp(base[name], weight, alpha) for name, weight in tuned.items()}


def diverged(loss: float, rate: float) -> JobFailed:
    """The error of a training whose loss or gradient is not a number any more."""
    return JobFailed(
        f"Training diverged: the loss is {loss:g} and its gradient is not a number, at a learning rate of {rate:g}.",
        hint="Lower learning_rate.",
    )


def _fold(digest: hashlib._Hash, layout: Any) -> None:
    """Add nested arrays to a digest."""
    if isinstance(layout, np.ndarray):
        digest.update(layout.tobytes())
    elif isinstance(layout, (list, tuple)):
        for part in layout:
            _fold(digest, part)
    else:
        digest.update(repr(layout).encode())


def _parts(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    order = np.argsort(lengths, kind="stable")
    cuts = np.cumsum(lengths[order]) // max(1, max_tokens)
    return [order[cuts == cut] for cut in np.unique(cuts)]
