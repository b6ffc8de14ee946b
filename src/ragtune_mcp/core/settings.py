"""Settings, read once from the environment and `<workspace>/.env`; the environment wins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ragtune_mcp.core.errors import InvalidInput

LossName = Literal[
    "auto",
    "CosineSimilarityLoss",
    "TripletLoss",
    "MultipleNegativesRankingLoss",
    "CoSENTLoss",
]


class Settings(BaseSettings):
    """One field per environment variable, same name in lower case."""

    model_config = SettingsConfigDict(extra="ignore", case_sensitive=False)

    # Fine-tuning
    finetuning_enabled: bool = True
    base_model_name: str = "all-MiniLM-L6-v2"
    finetuned_models_path: str = "./fine_tuned_models"
    training_data_path: str = "./training_data"
    batch_size: int = Field(16, ge=1, le=1024)
    num_epochs: int = Field(4, ge=1, le=100)
    learning_rate: float = Field(2e-5, gt=0, le=1)
    # "auto" measured far better than the specification's CosineSimilarityLoss, which stays selectable.
    loss_function: LossName = "auto"
    max_seq_length: int = Field(512, ge=16, le=8192)
    use_amp: bool = True

    # Data generation
    min_positive_samples: int = Field(50, ge=0)
    min_negative_samples: int = Field(50, ge=0)
    training_data_min_samples: int = Field(100, ge=0)
    include_hard_negatives: bool = True
    positive_rating_threshold: int = Field(4, ge=2, le=5)
    negative_rating_threshold: int = Field(2, ge=1, le=4)

    # A/B testing
    ab_testing_enabled: bool = True
    ab_test_duration_hours: float = Field(24, gt=0, le=24 * 365)
    ab_test_traffic_split: float = Field(0.5, gt=0, lt=1)
    ab_test_significance_level: float = Field(0.05, gt=0, lt=0.5)

    # Ours
    ragtune_conport: Literal["auto", "stdio", "http", "sqlite"] = "auto"
    ragtune_conport_command: str = "conport-mcp"
    ragtune_conport_url: str = ""
    ragtune_conport_idle_s: float = Field(300, ge=1)
    ragtune_chroma_url: str = ""
    ragtune_chroma_idle_s: float = Field(900, ge=5)
    ragtune_source_chroma: str = ""
    ragtune_allow_downloads: bool = True
    ragtune_executor: Literal["local", "ray"] = "local"
    ragtune_ray_address: str = ""
    ragtune_http_token: str = ""
    ragtune_attribute_answers: bool = True
    # Fixes which unit gets which variant; for replays that must come out the same twice. Empty: a new salt a test.
    ragtune_ab_salt: str = ""
    ollama_host: str = "http://127.0.0.1:11434"

    @classmethod
    def load(cls, root: Path) -> Settings:
        """Read the environment and `<root>/.env`.

        Args:
            root: the workspace folder.

        Returns:
            The settings.

        Raises:
            InvalidInput: a variable has a value outside its range; the message names it and the value.
        """
        try:
            settings = cls(_env_file=root / ".env", _env_file_encoding="utf-8")  # type: ignore[call-arg]
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]).upper()
            raise InvalidInput(
                f"Environment variable {name} has the value {first['input']!r}: {first['msg']}.",
                hint=f"Correct {name} in the environment or in .env.",
            ) from error
        if settings.positive_rating_threshold <= settings.negative_rating_threshold:
            raise InvalidInput(
                f"POSITIVE_RATING_THRESHOLD ({settings.positive_rating_threshold}) must be above "
                f"NEGATIVE_RATING_THRESHOLD ({settings.negative_rating_threshold})."
            )
        return settings


_PROJECT_MARKERS = ("package.json", ".git", "pyproject.toml", "Cargo.toml", "go.mod", "pom.xml", "context_portal")


def find_workspace(argument: str = "") -> Path:
    """The workspace folder, in ConPort's order, so that both servers mean the same one.

    Argument, RAGTUNE_WORKSPACE, VSCODE_WORKSPACE_FOLDER, CONPORT_WORKSPACE, the nearest parent that looks like
    a project, the current folder. An unexpanded `${...}` is ignored.

    Args:
        argument: what the command line said; empty for nothing.

    Returns:
        An absolute path, symbolic links kept (ConPort links rows by the literal string).

    Raises:
        InvalidInput: the folder named does not exist.
    """
    named = [argument, *(os.environ.get(v, "") for v in ("RAGTUNE_WORKSPACE", "VSCODE_WORKSPACE_FOLDER", "CONPORT_WORKSPACE"))]
    for value in named:
        if value and "${" not in value:
            path = Path(os.path.abspath(value))
            if not path.is_dir():
                raise InvalidInput(f"The workspace folder {value!r} does not exist.", hint="Create it or name another.")
            return path
    here = Path(os.path.abspath(os.curdir))
    for folder in (here, *here.parents):
        if any((folder / marker).exists() for marker in _PROJECT_MARKERS):
            return folder
    return here
