"""Settings, read once from the environment and `<workspace>/.env`; the environment wins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ragtune_mcp.core.errors import InvalidInput

# Losses of sentence-transformers that can be asked for by name.
LOSSES = ("CosineSimilarityLoss", "TripletLoss", "MultipleNegativesRankingLoss", "CoSENTLoss")
LOSS_PATTERN = rf"^(auto|({'|'.join(LOSSES)})(\+({'|'.join(LOSSES)}))*)$"


class Settings(BaseSettings):
    """One field per environment variable, same name in lower case."""

    model_config = SettingsConfigDict(extra="ignore", case_sensitive=False)

    # Fine-tuning
    finetuning_enabled: bool = Field(True, description="`false`: `start_finetune` refuses.")
    base_model_name: str = Field(
        "all-MiniLM-L6-v2", description="Model that training starts from, and that serves the first index."
    )
    finetuned_models_path: str = Field(
        "./fine_tuned_models", description="Folder of trained models, inside the workspace."
    )
    training_data_path: str = Field(
        "./training_data", description="Folder of data sets, inside the workspace."
    )
    batch_size: int = Field(16, ge=1, le=1024, description="Examples per optimizer step.")
    num_epochs: int = Field(
        4,
        ge=1,
        le=100,
        description="Passes over the training data. With `auto` this default leaves the choice to the recipe.",
    )
    learning_rate: float = Field(
        2e-5,
        gt=0,
        le=1,
        description="Peak learning rate. With `auto` this default leaves the choice to the recipe.",
    )
    # "auto" measured far better than the specification's CosineSimilarityLoss, which stays selectable.
    loss_function: str = Field(
        "auto",
        pattern=LOSS_PATTERN,
        description=f"`auto`: the project's recipe. Else {', '.join(f'`{name}`' for name in LOSSES)}, or "
        "several of them joined by `+` and trained at once; every other value is then taken literally.",
    )
    max_seq_length: int = Field(
        512, ge=16, le=8192, description="Tokens per text; never above what the base model was set up for."
    )
    use_amp: bool = Field(True, description="bfloat16 matrix products where the processor has them.")

    # Data generation
    min_positive_samples: int = Field(50, ge=0, description="Fewest positive pairs of a data set.")
    min_negative_samples: int = Field(
        50, ge=0, description="Fewest negative pairs of a data set, hard negatives included."
    )
    training_data_min_samples: int = Field(
        100, ge=0, description="Fewest ratings behind the pairs of a data set."
    )
    include_hard_negatives: bool = Field(True, description="Mine near misses from the live index.")
    positive_rating_threshold: int = Field(
        4, ge=4, le=5, description="Pooled ratings from here up are positive; 3 says neither."
    )
    negative_rating_threshold: int = Field(
        2, ge=1, le=2, description="Pooled ratings from here down are negative; 3 says neither."
    )

    # A/B testing
    ab_testing_enabled: bool = Field(
        True,
        description="`false`: `start_ab_test` refuses, a running test ends, the serving version answers all.",
    )
    ab_test_duration_hours: float = Field(24, gt=0, le=24 * 365, description="How long a test runs.")
    ab_test_traffic_split: float = Field(0.5, gt=0, lt=1, description="Share of searches for the test model.")
    ab_test_significance_level: float = Field(
        0.05, gt=0, lt=0.5, description="Level of the whole test, however often it is read."
    )

    # Other programs
    ragtune_conport: Literal["auto", "stdio", "http", "sqlite"] = Field(
        "auto",
        description="How ConPort is reached. `auto`: through the URL where one is set; else its SQLite file "
        "is read where it has the known form, and the rest goes through a ConPort process of our own. "
        "`sqlite`: nothing but the file, also for writing.",
    )
    ragtune_conport_command: str = Field(
        "conport-mcp", description="Command of our own ConPort, looked up on PATH and beside this Python."
    )
    ragtune_conport_url: str = Field(
        "", description="MCP endpoint of a running ConPort; empty: our own process."
    )
    ragtune_conport_idle_s: float = Field(
        300, ge=1, description="Seconds without a call after which our ConPort process ends."
    )
    ragtune_chroma_url: str = Field(
        "",
        description="Chroma server that keeps the vectors, e.g. `http://host:8000`; empty: our own process.",
    )
    ragtune_chroma_idle_s: float = Field(
        900, ge=5, description="Seconds without use after which our vector store process ends."
    )
    ragtune_source_chroma: str = Field(
        "",
        description="Your own Chroma for `index_documents` with source `chroma:<collection>`: a URL, or a "
        "folder inside the workspace. Only read.",
    )
    ragtune_allow_downloads: bool = Field(
        True, description="Whether a base model may come from the model hub."
    )
    ragtune_executor: Literal["local", "ray"] = Field(
        "local", description="Where workers run: processes of this machine, or Ray jobs (extra `ray`)."
    )
    ragtune_ray_address: str = Field("", description="Ray's job server; empty: `http://127.0.0.1:8265`.")
    ollama_host: str = Field(
        "http://127.0.0.1:11434",
        description="An Ollama that checks exports to it; the check is skipped without one.",
    )

    # Behaviour
    ragtune_http_token: str = Field(
        "", description="Bearer token that every HTTP request must carry; required to listen beyond loopback."
    )
    ragtune_attribute_answers: bool = Field(
        True, description="Match answers rated without documents to the indexed documents they quote."
    )
    ragtune_ab_salt: str = Field(
        "",
        description="Fixes which unit gets which variant, for replays that must come out the same twice; "
        "empty: a new salt for each test.",
    )

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
            return cls(_env_file=root / ".env", _env_file_encoding="utf-8")  # type: ignore[call-arg]
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]).upper()
            raise InvalidInput(
                f"Environment variable {name} has the value {first['input']!r}: {first['msg']}.",
                hint=f"Correct {name} in the environment or in .env.",
            ) from error


_PROJECT_MARKERS = (
    "package.json",
    ".git",
    "pyproject.toml",
    "Cargo.toml",
    "go.mod",
    "pom.xml",
    "context_portal",
)


def find_workspace(argument: str = "") -> Path:
    """The workspace folder, in ConPort's order, so that both servers mean the same one.

    Argument, RAGTUNE_WORKSPACE, VSCODE_WORKSPACE_FOLDER, CONPORT_WORKSPACE, the nearest parent that looks
    like a project, the current folder. An unexpanded `${...}` is ignored.

    Args:
        argument: what the command line said; empty for nothing.

    Returns:
        An absolute path, symbolic links kept (ConPort links rows by the literal string).

    Raises:
        InvalidInput: the folder named does not exist.
    """
    named = [
        argument,
        *(
            os.environ.get(v, "")
            for v in ("RAGTUNE_WORKSPACE", "VSCODE_WORKSPACE_FOLDER", "CONPORT_WORKSPACE")
        ),
    ]
    for value in named:
        if value and "${" not in value:
            path = Path(os.path.abspath(value))
            if not path.is_dir():
                raise InvalidInput(
                    f"The workspace folder {value!r} does not exist.", hint="Create it or name another."
                )
            return path
    here = Path(os.path.abspath(os.curdir))
    for folder in (here, *here.parents):
        if any((folder / marker).exists() for marker in _PROJECT_MARKERS):
            return folder
    return here
