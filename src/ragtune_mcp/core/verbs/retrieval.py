"""Verbs of daily use: index documents, search, rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from ragtune_mcp.core.errors import IntegrityError, InvalidInput, NotReady, RagTuneError
from ragtune_mcp.core.jobs.job import FINAL
from ragtune_mcp.core.results import FeedbackRecorded, IndexResult, SearchResult, SearchResults
from ragtune_mcp.core.retrieval.documents import IndexPlan
from ragtune_mcp.core.retrieval.reindex import build_collection, plan_index, storing, update_collections
from ragtune_mcp.core.verbs.trials import TrialVerbs, about

_INLINE_CHUNKS = 64
_QUERY_LIMIT = 10_000
_WARM_UP_S = 20.0
_READING_WAIT_S = 20.0
_NEWEST_KEPT = 2


class RetrievalVerbs(TrialVerbs):
    """index_documents, search, record_feedback."""

    def index_documents(self, *, paths: Sequence[str] = (), source: str = "files") -> IndexResult:
        """Bring the index up to date with files, ConPort items or a Chroma collection of the user's own."""
        versions = self.serving_versions()
        are_loaded = bool(versions) and self._are_loaded(versions)
        with storing(self.workspace, wait_s=_READING_WAIT_S):
            plan = plan_index(
                self.workspace,
                self.documents,
                paths=tuple(paths),
                source=source,
                conport=lambda: self.conport,
            )
            # Asked after the plan was made: what it does not name may still wait for another process to encode it.
            is_complete = bool(versions) and all(self.has_index(version) for version in versions)
            if is_complete and not plan.changes and not plan.moved:
                return _indexed(plan, "Everything is up to date.")
            at_once = is_complete and are_loaded and plan.changes <= _INLINE_CHUNKS
            if at_once:
                self.documents.apply(plan)
        if at_once:
            update_collections(self.documents, self.index, self.encoders, versions)
            self.catch_up_with_switches(versions)
            return _indexed(plan, "The index is up to date.")
        # A job that already runs may have read the files before their last change.
        job = self.submit_once("index", {"paths": list(paths), "source": source}, unless=(*FINAL, "running"))
        return _indexed(
            plan,
            self._told_first(plan, versions),
            job_id=job.job_id,
            next_step=f"Call job_status with job_id={job.job_id!r}, wait_s=30 until completed, then search.",
        )

    def search(self, query: str, k: int = 5, unit_id: str = "") -> SearchResults:
        """Rank the indexed documents for a query; while a test runs, blind to which variant answered."""
        if not query.strip():
            raise InvalidInput("query is empty.", hint="Ask in a few words.")
        if len(query) > _QUERY_LIMIT:
            raise InvalidInput(f"query has {len(query)} characters; the limit is {_QUERY_LIMIT}.")
        self._warm_up()
        served = self.service.search(query, k, unit_id)
        return SearchResults(
            query_id=served.query_id,
            results=[
                SearchResult(id=h.id, text=h.text, source=h.source, rank=h.rank, score=round(h.score, 4))
                for h in served.hits
            ],
            next_step=f"After using them, call record_feedback with query_id={served.query_id!r}.",
        )

    def _warm_up(self) -> None:
        # The first search of a process loads the encoder: better seconds late than refused. Before the exposure is
        # logged, so that a search which nothing can answer leaves none.
        version, trial = self.champion(), self.trials.active()
        if trial is not None:
            version = trial.baseline_version
            with suppress(RagTuneError):  # a test version that cannot answer falls back, and is counted there
                self.encoders.get(trial.test_version, wait_s=_WARM_UP_S)
        self.encoders.get(version, wait_s=_WARM_UP_S)

    def record_feedback(
        self,
        query_id: str,
        *,
        rating: int = 0,
        document_ratings: Mapping[str, int] | None = None,
        user_satisfaction: int = 0,
        comment: str = "",
        helpful_ids: Sequence[str] = (),
    ) -> FeedbackRecorded:
        """Store a rating here and, through the outbox, in ConPort; 0 means not given."""
        recorded = self.outcomes.record(
            query_id,
            rating=rating or None,
            document_ratings=document_ratings,
            user_satisfaction=user_satisfaction or None,
            comment=comment,
            helpful_ids=helpful_ids,
        )
        have = self.feedback_count()
        need = self.settings.training_data_min_samples
        return FeedbackRecorded(
            feedback_id=recorded.feedback_id,
            stored_in=["ragtune", "conport (queued)"],
            duplicate=recorded.is_duplicate,
            ready_to_train={"have": have, "need": need},
            warnings=[
                "The test this search belonged to is decided; the rating trains but does not count in it."
            ]
            if recorded.is_late
            else [],
            next_step="Call generate_training_data."
            if have >= need
            else f"{need - have} more ratings before training pays.",
        )

    def serving_versions(self) -> list[str]:
        """Versions whose index must stay current, the champion first; empty while nothing serves.

        With the champion: the one before it, so that a roll-back needs no rebuilding, the challenger, and both
        variants of a test, as far as they have an index.
        """
        champion, trial = self.registry.alias("champion"), self.trials.active()
        if champion is None:
            return []
        others = [self.registry.previous_champion(), self.registry.alias("challenger")]
        others += [trial.baseline_version, trial.test_version] if trial else []
        return list(dict.fromkeys([champion, *(v for v in others if v and self.index.count(v))]))

    def _told_first(self, plan: IndexPlan, versions: Sequence[str]) -> str:
        texts, states = len(plan.new) + len(plan.changed), [self.index.state(version) for version in versions]
        behind = sum(state.to_encode for state in states)
        estimate_s = self.index.estimate_s(texts * max(1, len(versions)) + behind)
        gone = ", ".join(state.version for state in states if state.state == "gone")
        told = f"Indexing runs in the background{about(estimate_s)}; the counts are its plan."
        return f"The vectors of {gone} are gone from the store. {told}" if gone else told

    def catch_up_with_switches(self, done: Sequence[str]) -> None:
        """Index the documents just stored for versions that came to serve while they were indexed for others.

        Args:
            done: the versions that have them.
        """
        known = set(done)
        while late := [version for version in self.serving_versions() if version not in known]:
            for version in late:
                encoder = self.encoders.get(version, wait_s=_WARM_UP_S)
                build_collection(self.index, self.documents, version, encoder)
            known.update(late)

    def prune_index(self) -> list[str]:
        """Delete the collections nobody will ask for again, and return their names.

        Those of these versions stay: all that ever served, so that every roll-back finds its index; the
        challenger; both of a running test or ramp; and the two begun last, which somebody has just asked for.
        """

        def keep() -> set[str]:
            served, newest = self.registry.audit.ever("champion"), self.index.versions()[-_NEWEST_KEPT:]
            return {*self.serving_versions(), *served, *newest}

        return self.index.prune(keep)

    def _are_loaded(self, versions: Sequence[str]) -> bool:
        # Asked before the documents are stored: an encoder that is missing then would leave its index behind.
        if not self.encoders.is_ready(versions[0]):
            return False
        try:
            for version in versions:
                self.encoders.get(version, wait_s=_WARM_UP_S)
        except (NotReady, IntegrityError):
            return False
        return True

    def feedback_count(self) -> int:
        """Ratings at hand: those in ConPort, as far as known without starting it, and those queued."""
        delivered = self.conport.count_custom_data("UserFeedback") or 0
        return delivered + self.outbox.pending("UserFeedback")


def _indexed(
    plan: IndexPlan, message: str, *, job_id: str | None = None, next_step: str = "Call search."
) -> IndexResult:
    return IndexResult.model_validate(
        {**plan.counts(), "message": message, "job_id": job_id, "next_step": next_step}
    )
