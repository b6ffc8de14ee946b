"""Peak memory of training by batch size and text length: what the plan expects and what the kernel counts.

    python scripts/bench/finetune_memory.py [--batches 16 64] [--tokens 64 256]

Every row is a process of its own that trains all-MiniLM-L6-v2 for two steps as `fine_tune` does with a named
loss (all layers train) or with `auto` (lowest third frozen, outputs kept). A batch is that many queries and as many
documents, all of the full length. "part" is how many tokens are embedded with gradients at once. The last row
repeats the largest batch with less memory said to be free: it then goes in smaller parts.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import replace
from typing import Any

from bench_data import ROOT

GIB = 1 << 30
SHORT = 1.6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--tokens", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(**json.loads(arguments.child))))
        return
    print("| training | batch | tokens per text | GiB free | part, tokens | GiB planned | GiB measured |")
    print("|---|---|---|---|---|---|---|")
    for frozen in (0, 2):
        for batch in arguments.batches:
            for tokens in arguments.tokens:
                show(frozen=frozen, batch=batch, tokens=tokens, free=64.0)
    show(frozen=0, batch=max(arguments.batches), tokens=max(arguments.tokens), free=SHORT)


def show(**task: Any) -> None:
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(task)], capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    kind = "lowest third frozen (`auto`)" if task["frozen"] else "all layers"
    print(
        f"| {kind} | {task['batch']} | {task['tokens']} | {task['free']:g} | {found['part_tokens']} | "
        f"{found['planned'] / GIB:.2f} | {found['measured'] / GIB:.2f} |",
        flush=True,
    )


def measure(frozen: int, batch: int, tokens: int, free: float) -> dict[str, Any]:
    """Two steps; the peak of the whole process in bytes."""
    import sentence_transformers  # noqa: F401 -- part of every real run
    import torch

    torch.set_num_threads(1)
    from ragtune_mcp.core.finetune.backbone import FastBackbone, open_backbone
    from ragtune_mcp.core.finetune.base import resolve_base_model
    from ragtune_mcp.core.finetune.config import FineTuningConfig
    from ragtune_mcp.core.finetune.examples import RankingExample
    from ragtune_mcp.core.finetune.memory import plan_memory
    from ragtune_mcp.core.finetune.objectives import Ranking
    from ragtune_mcp.core.finetune.recipe import choose_recipe
    from ragtune_mcp.core.finetune.trainer import FastTrainer

    base = resolve_base_model("all-MiniLM-L6-v2", ROOT, False)
    backbone = open_backbone(base.path, tokens, low_precision=True)
    assert isinstance(backbone, FastBackbone)
    # Every word below is one token, and texts are cut to the length that is asked for.
    words = ["water", "house", "green", "paper", "light", "stone", "river", "music"]
    texts = [
        " ".join(words[(i >> (3 * n % 12)) % 8] for n in range(tokens)) + f" {i}" for i in range(4 * batch)
    ]
    texts = [f"{i} {text}" for i, text in enumerate(texts)]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    examples = [RankingExample(query, text, (), frozenset({text}), 1.0) for query, text in pairs]
    item = backbone.dtype.itemsize
    kept = backbone.token_count(texts) * backbone.shape.width * item if frozen else 0
    plan = plan_memory(
        backbone.size(frozen),
        text_tokens=tokens,
        batch_tokens=2 * batch * tokens,
        kept_bytes=kept,
        vector_bytes=0,
        item_bytes=item,
        available=round(free * GIB),
    )
    backbone.freeze(frozen, plan.kept_bytes)
    backbone.keep(texts)
    config = FineTuningConfig(batch_size=batch, num_epochs=1, loss_function="MultipleNegativesRankingLoss")
    recipe = replace(choose_recipe(config, len(examples), 6), frozen_layers=frozen)
    trainer = FastTrainer(backbone, Ranking(examples), recipe, micro_tokens=plan.part_tokens)
    trained = trainer.run(validate=None, on_step=lambda step: None)
    assert trained.steps == 2
    return {
        "part_tokens": plan.part_tokens,
        "planned": plan.peak_bytes,
        "measured": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    main()
