from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest

from ragtune_mcp.core.errors import NotEnoughMemory
from ragtune_mcp.core.finetune.memory import ModelSize, activation_bytes, free_memory, plan_memory

GIB = 1 << 30
MINILM = ModelSize(3, 384, 1536, 12, weight_bytes=90 << 20, trained_bytes=21 << 20)
ORDINARY = {
    "text_tokens": 256,
    "batch_tokens": 20_000,
    "kept_bytes": 200 << 20,
    "vector_bytes": 10 << 20,
    "item_bytes": 2,
}


def plan(available_gib, size=MINILM, **changes):
    return plan_memory(size, **{**ORDINARY, **changes}, available=int(available_gib * GIB))


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


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Control groups of a machine with 16 GiB free, none of which bounds anything yet."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=16 * GIB))
    own = tmp_path / "own"
    own.write_text("9:cpu,cpuacct:/\n0::/system.slice/docker-1.scope\n")
    return SimpleNamespace(mount=tmp_path / "cgroup", own=own)


def test_without_control_groups_the_machine_alone_counts(groups, tmp_path):
    assert free_memory(groups.own, groups.mount) == 16 * GIB
    assert free_memory(tmp_path / "missing", groups.mount) == 16 * GIB


@pytest.mark.parametrize("place", ["system.slice/docker-1.scope", "system.slice", "."])
def test_a_container_bounds_what_is_free_at_any_level(groups, place):
    write(groups.mount / "system.slice" / "docker-1.scope", memory__max="max", memory__current=GIB)
    limits = {"memory__max": 4 * GIB, "memory__current": 3 * GIB, "memory__stat": f"inactive_file {GIB}"}
    write(groups.mount / place, **limits)
    assert free_memory(groups.own, groups.mount) == 2 * GIB


def test_the_older_interface_bounds_too(groups):
    groups.own.write_text("4:memory:/box\n0::/\n")
    for name, limit in (("box", 2 * GIB), (".", 2**63 - 4096)):
        write(
            groups.mount / "memory" / name,
            memory__limit_in_bytes=limit,
            memory__usage_in_bytes=3 * GIB,
            memory__stat="total_inactive_file 0",
        )
    assert free_memory(groups.own, groups.mount) == 0


def test_a_sandbox_without_statistics_bounds_too(groups):
    write(groups.mount, memory__max=2 * GIB, memory__current=GIB)
    assert free_memory(groups.own, groups.mount) == GIB
    (groups.mount / "memory.current").unlink()
    assert free_memory(groups.own, groups.mount) == 16 * GIB


def test_this_process_has_memory_left():
    assert 0 < free_memory() <= psutil.virtual_memory().total
