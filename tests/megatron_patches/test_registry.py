"""The registry: what is listed, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib import metadata

import pytest

from emma.megatron_patches import PatchError, registry
from emma.megatron_patches.machine import Machine, _visible
from emma.megatron_patches.patch import Decision, Patch, Target
from emma.megatron_patches.registry import patches

CPU = Machine(gpus=0, transformer_engine=False, apex=False)
GPU = Machine(gpus=8, transformer_engine=True, apex=False)


def example(**changes: object) -> Patch:
    patch = Patch(
        name="example",
        targets=(Target("json:dumps", None),),
        versions={"click": ()},
        reason="for the test",
        upstream="https://example.org",
        condition=lambda machine: Decision(True, "always"),
        install=lambda: None,
    )
    return replace(patch, **changes)  # type: ignore[arg-type]


def on(machine: Machine) -> set[str]:
    return {patch.name for patch in patches() if patch.condition(machine).on}


def test_every_patch_declares_what_it_is() -> None:
    assert len({patch.name for patch in patches()}) == len(patches()) == len(registry.MODULES)
    for patch in patches():
        assert patch.targets and patch.reason and patch.versions["megatron-core"]
        assert patch.upstream.startswith("https://")
        for machine in (CPU, GPU):
            assert patch.condition(machine).why


def test_the_machine_decides_which_patches_are_on() -> None:
    everywhere = {
        "inert-loading",
        "prebuilt-dataset-helpers",
        "sequence-parallel-norm",
        "writer-survives-stop-signals",
        "rope-scaling",
        "optimizer-rows",
        "even-blocks",
        "exact-reads",
        "accumulated-gradient",
        "zero-centred-norm",
        "window-mask",
    }
    without_gpu = {"cpu-backend", "initialize-without-cuda", "torch-adam-resume"}
    assert on(CPU) == everywhere | without_gpu
    assert on(GPU) == everywhere | {"param-remainders"}
    assert on(replace(GPU, transformer_engine=False)) == everywhere | {"torch-adam-resume"}
    assert on(replace(CPU, transformer_engine=True)) == everywhere | without_gpu
    assert on(replace(GPU, apex=True)) == (everywhere | {"param-remainders"}) - {"accumulated-gradient"}


def test_an_untested_version_is_refused_with_patch_version_and_fix() -> None:
    version = metadata.version("click")
    with pytest.raises(PatchError, match=rf"example.*click 0\.1.*{version}.*pip install 'click==0\.1'"):
        example(versions={"click": ("0.1",)}).check_versions()
    with pytest.raises(PatchError, match="example needs no-such-thing"):
        example(versions={"no-such-thing": ("1",)}).check_versions()
    example(versions={"click": (version,)}).check_versions()


def test_the_build_of_a_version_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.13.0+cu130")
    example(versions={"torch": ("2.13.0",)}).check_versions()
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.14.0+cu130")
    with pytest.raises(PatchError, match=r"2\.14\.0"):
        example(versions={"torch": ("2.13.0",)}).check_versions()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target("no_such_module:f"), "no_such_module:f does not exist"),
        (Target("json:no_such_function"), "json:no_such_function does not exist"),
        (Target("json:JSONEncoder.no_such_method"), "no_such_method does not exist"),
        (Target("json:loads", "text"), r"has the parameters \(s cls .*instead of \(text\)"),
    ],
)
def test_a_target_that_is_not_as_expected_is_refused(target: Target, message: str) -> None:
    with pytest.raises(PatchError, match=message):
        target.check("example")


def test_nothing_is_applied_where_one_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[str] = []
    good = example(name="good", install=lambda: installed.append("good"))
    bad = example(name="bad", versions={"click": ("0.1",)}, install=lambda: installed.append("bad"))
    monkeypatch.setattr(registry, "_applied", None)
    monkeypatch.setattr(registry, "patches", lambda: (replace(good, versions={}), bad))
    monkeypatch.setattr(Machine, "from_torch", classmethod(lambda cls: CPU))
    with pytest.raises(PatchError, match="bad"):
        registry.apply()
    assert installed == []


def test_a_second_call_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[str] = []
    once = example(versions={}, install=lambda: installed.append("once"))
    never = example(
        name="never", versions={"click": ("0.1",)}, condition=lambda machine: Decision(False, "not here")
    )
    monkeypatch.setattr(registry, "_applied", None)
    monkeypatch.setattr(registry, "patches", lambda: (once, never))
    monkeypatch.setattr(Machine, "from_torch", classmethod(lambda cls: CPU))
    first = registry.apply()
    assert registry.apply() is first
    assert registry.status() is first
    assert installed == ["once"]
    assert [(each.name, each.on, each.applied, each.why) for each in first] == [
        ("example", True, True, "always"),
        ("never", False, False, "not here"),
    ]


def test_status_is_json_and_needs_neither_torch_nor_megatron() -> None:
    program = (
        "import json, sys; from emma import megatron_patches\n"
        "print(json.dumps([status.as_dict() for status in megatron_patches.status()]))\n"
        "assert not {'torch', 'megatron', 'megatron.core', 'numpy'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    listed = json.loads(done.stdout)
    assert [each["name"] for each in listed] == [patch.name for patch in patches()]
    assert not any(each["applied"] for each in listed)


@pytest.mark.parametrize(
    ("listed", "visible"),
    [(None, 4), ("", 0), ("-1", 0), ("0,2", 2), ("0,9,1", 1), ("GPU-abc", 1), ("0,-1,1", 1)],
)
def test_visible_devices_hide_gpus(listed: str | None, visible: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert _visible(4) == visible
