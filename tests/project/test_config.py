"""Configuration: presets, files and --set, and the errors for what is not admitted."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insta_runtime.errors import UserError
from telepresence.config import Config, load_config, preset_names, settings


def test_every_preset_loads_and_the_cpu_one_is_small() -> None:
    assert {"cpu", "default"} <= set(preset_names())
    default, cpu = load_config("default", device="cpu"), load_config("cpu", device="cpu")
    assert cpu.avatar.radiance.log2_entries < default.avatar.radiance.log2_entries
    assert default.avatar == Config().avatar


def test_without_a_name_the_preset_follows_the_device() -> None:
    assert load_config(None, device="cpu").avatar == load_config("cpu", device="cpu").avatar


def test_the_device_is_resolved() -> None:
    assert load_config("cpu", device="auto").run.device in ("cpu", "cuda")
    assert load_config("cpu", device="cpu").run.device == "cpu"


def test_every_setting_documents_itself_and_its_default_is_admissible() -> None:
    for entry in settings():
        assert entry.meaning, entry.key
        text = str(entry.default).lower() if isinstance(entry.default, bool) else str(entry.default)
        if entry.key != "run.device":
            load_config("default", [f"{entry.key}={text}"], device="cpu")


def test_a_file_builds_on_a_preset_and_overrides_come_last(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('preset = "cpu"\n[avatar.learn]\nrays = 1024\nframes = 2\n[run]\nsize = 384\n')
    config = load_config(str(path), ["avatar.learn.frames=3", "run.crop=head"], device="cpu")
    assert config.avatar.learn.rays == 1024
    assert config.avatar.learn.frames == 3
    assert config.run.size == 384
    assert config.run.crop == "head"
    assert config.avatar.radiance == load_config("cpu", device="cpu").avatar.radiance


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("avatar.learn.ray=3", ["'avatar.learn.ray'", "avatar.learn.rays"]),
        ("learn.rays=300", ["'learn.rays'", "avatar.learn.rays"]),
        ("rays=300", ["avatar.learn.rays"]),
        ("avatar.learn.rays=3", ["avatar.learn.rays", "between 64 and"]),
        ("avatar.learn.rays=many", ["avatar.learn.rays", "whole number", "many"]),
        ("avatar.learn.rays=1.5", ["whole number"]),
        ("run.render_fps=nan", ["run.render_fps", "nan"]),
        ("run.render_fps=inf", ["run.render_fps", "inf"]),
        ("run.show_camera=1", ["true or false"]),
        ("run.crop=middle", ["auto, head, center", "middle"]),
        ("run.device=tpu", ["auto, cpu, cuda"]),
        ("avatar=3", ["avatar", "group"]),
        ("avatar.learn.rays", ["key=value"]),
        ("=3", ["key=value"]),
        ("zzz=3", ["'zzz'"]),
        ("stream.host=0.0.0.0", ["0.0.0.0", "127.0.0.1"]),
        ("stream.size=333", ["333", "even"]),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config("cpu", [override], device="cpu")
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[avatar.learn]\nray = 3\n", ["avatar.learn.ray", "avatar.learn.rays"]),
        ("avatar = 3\n", ["avatar", "group"]),
        ("[run]\nsize = '512'\n", ["run.size", "whole number"]),
        ("[run.size]\nx = 1\n", ["run.size"]),
        ("[run\n", ["not a TOML file"]),
        ("preset = 'huge'\n", ["huge", "cpu"]),
        ("preset = 3\n", ["preset"]),
        ("[avatar.learn.deeper.still]\nx = 1\n", ["avatar.learn.deeper.still.x"]),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, content: str, words: list[str]) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        load_config(str(path), device="cpu")
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


def test_files_that_are_not_text_are_refused(tmp_path: Path) -> None:
    binary = tmp_path / "picture.toml"
    binary.write_bytes(bytes(range(256)))
    for path in (binary, tmp_path, tmp_path / "absent.toml"):
        with pytest.raises(UserError, match=path.name):
            load_config(str(path), device="cpu")


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_override_raises_at_most_a_user_error(key: str, value: str) -> None:
    for override in (f"{key}={value}", f"avatar.learn.rays={value}", f"run.show_camera={value}"):
        try:
            config = load_config("cpu", [override], device="cpu")
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
        else:
            assert config.avatar.learn.rays >= 64


def test_the_page_of_settings_is_up_to_date(root: Path) -> None:
    page = runpy.run_path(str(root / "tools" / "config_table.py"))["page"]()
    assert (root / "docs" / "configuration.md").read_text(encoding="utf-8") == page, "run `make docs`"
