from dataclasses import replace

import pytest

from ragtune_mcp.core.errors import NotEnoughMemory
from ragtune_mcp.core.finetune.memory import ModelSize, activation_bytes, plan_memory

MINILM = ModelSize(3, 384, 1536, 12, weight_bytes=90 << 20, trained_bytes=21 << 20)
ORDINARY = {
    "text_tokens": 256,
    "batch_tokens": 20_000,
    "kept_bytes": 200 << 20,
    "vector_bytes": 10 << 20,
    "item_bytes": 2,
}


def plan(available_gib, size=MINILM, **changes):
    return plan_memory(size, **{**ORDINARY, **changes}, available=int(available_gib * (1 << 30)))


def test_with_plenty_of_memory_a_batch_goes_at_once_and_every_output_is_kept():
    found = plan(64, batch_tokens=8_000)
    assert (found.part_tokens, found.kept_bytes) == (8_000, 200 << 20)


def test_less_memory_means_smaller_parts_then_fewer_kept_outputs():
    plans = [plan(available) for available in (8, 1.9, 1.3)]
    assert [p.part_tokens for p in plans] == sorted((p.part_tokens for p in plans), reverse=True)
    assert plans[-1].part_tokens < plans[0].part_tokens
    assert plans[-1].kept_bytes <= plans[0].kept_bytes
    assert all(
        p.peak_bytes <= available * (1 << 30) for p, available in zip(plans, (8, 1.9, 1.3), strict=True)
    )


def test_a_run_that_cannot_fit_is_refused_with_both_numbers():
    with pytest.raises(NotEnoughMemory, match=r"0\.5 GiB are free"):
        plan(0.5)


def test_longer_texts_more_layers_and_float32_need_more_per_token():
    base = activation_bytes(MINILM, 128, 2)
    assert activation_bytes(MINILM, 256, 2) > base
    assert activation_bytes(replace(MINILM, trained_layers=6), 128, 2) == 2 * base
    assert activation_bytes(MINILM, 128, 4) == 2 * base
