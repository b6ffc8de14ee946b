"""What a data set is made with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ragtune_mcp.core.dataset.export import FORMATS
from ragtune_mcp.core.dataset.pairs import PairRules
from ragtune_mcp.core.errors import InvalidInput
from ragtune_mcp.core.settings import Settings

_MAX_DAYS = 36_500


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """Options of one data set; `from_settings` takes the defaults of the workspace.

    Attributes:
        min_positive_samples: fewest positive pairs.
        min_negative_samples: fewest negative pairs, hard negatives included.
        min_ratings: fewest opinions behind the pairs (TRAINING_DATA_MIN_SAMPLES).
        positive_threshold: pooled ratings from here up are positives; above 3.
        negative_threshold: pooled ratings down from here are negatives; below 3.
        attribute_answers: match answers rated without documents to the documents they quote.
        days_back: older entries are skipped.
        keep_documents_apart: leave out of training every pair whose document is a positive of a test query.
        by_time: the test slice is the newest groups instead of a hash of the group.
        seed: of the easy negatives; the splits do not depend on it.
    """

    min_positive_samples: int = 50
    min_negative_samples: int = 50
    min_ratings: int = 100
    include_hard_negatives: bool = True
    include_synthetic: bool = False
    positive_threshold: float = 4.0
    negative_threshold: float = 2.0
    attribute_answers: bool = True
    days_back: int = 90
    export_format: str = "csv"
    keep_documents_apart: bool = False
    by_time: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("min_positive_samples", "min_negative_samples", "min_ratings"):
            if getattr(self, name) < 0:
                raise InvalidInput(f"{name} {getattr(self, name)} is below 0.")
        if not 1 <= self.days_back <= _MAX_DAYS:
            raise InvalidInput(f"days_back {self.days_back} is not between 1 and {_MAX_DAYS}.")
        if self.export_format not in FORMATS:
            raise InvalidInput(f"export_format {self.export_format!r} is not one of {', '.join(FORMATS)}.")
        if not self.negative_threshold < 3 < self.positive_threshold:
            raise InvalidInput(
                f"The positive threshold {self.positive_threshold:g} must be above 3 and the negative one "
                f"{self.negative_threshold:g} below 3, which says neither."
            )

    @classmethod
    def from_settings(cls, settings: Settings, **overrides: Any) -> DatasetOptions:
        """The workspace's settings, with what the caller gave in their place.

        Args:
            settings: of the workspace.
            **overrides: fields of this class; None means the setting.

        Returns:
            The options.

        Raises:
            InvalidInput: a value is out of range.
        """
        values: dict[str, Any] = {
            "min_positive_samples": settings.min_positive_samples,
            "min_negative_samples": settings.min_negative_samples,
            "min_ratings": settings.training_data_min_samples,
            "include_hard_negatives": settings.include_hard_negatives,
            "positive_threshold": float(settings.positive_rating_threshold),
            "negative_threshold": float(settings.negative_rating_threshold),
            "attribute_answers": settings.ragtune_attribute_answers,
        }
        return cls(**values | {name: value for name, value in overrides.items() if value is not None})

    @property
    def pair_rules(self) -> PairRules:
        """Thresholds and caps of the rated pairs."""
        return PairRules(positive=self.positive_threshold, negative=self.negative_threshold)

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)
