"""Command line: help, version, and one line for each error that the user can fix."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import telepresence
from telepresence.checkup.machine import NEEDED
from telepresence.cli import run_command
from telepresence.commands.doctor import doctor

COMMANDS = ("run", "track", "fit", "evaluate", "render", "send", "bench", "rehearse", "forget", "doctor")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"telepresence {telepresence.__version__}"


def test_without_a_command_the_help_lists_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([command, "--help"]) == 0
    assert "Usage: telepresence" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dance"], ["dance"]),
        (["fit"], ["SOURCE"]),
        (["fit", "x.mp4"], ["--out"]),
        (["fit", "x.mp4", "--out", "a", "--seconds", "long"], ["--seconds", "number"]),
        (["fit", "synthetic", "--out", "a", "--config", "huge"], ["huge", "cpu", "default"]),
        (["fit", "synthetic", "--out", "a", "--config", "absent.toml"], ["absent.toml"]),
        (["fit", "synthetic", "--out", "a", "--set", "avatar.learn.ray=3"], ["avatar.learn.rays"]),
        (["fit", "synthetic", "--out", "a", "--size", "7"], ["avatar.learn.size", "between"]),
        (["fit", "synthetic", "--out", "a", "--holdout", "1.5"], ["--holdout"]),
        (["fit", "absent.mp4", "--out", "a", "--device", "cpu"], ["absent.mp4"]),
        (["fit", "synthetic", "--out", "a", "--device", "tpu"], ["run.device", "tpu"]),
        (["track", "absent.mp4", "--out", "a"], ["absent.mp4"]),
        (["track", "absent.mp4", "--out", "a", "--crop", "middle"], ["run.crop", "middle"]),
        (["evaluate", "absent", "absent"], ["absent"]),
        (["render", "absent", "--driver", "gone"], ["--out", "--frames"]),
        (["render", "absent", "--out", "v.mp4"], ["--driver", "--orbit"]),
        (["render", "absent", "--orbit", "30", "--frames", "f"], ["absent"]),
        (["send", "absent"], ["absent"]),
        (["run", "--source", "telescope"], ["telescope", "synthetic"]),
        (["run", "--source", "file:absent.mp4"], ["absent.mp4"]),
        (["run", "--source", "synthetic", "--port", "70000"], ["stream.port", "65535"]),
        (["run", "--source", "synthetic", "--drive", "horse"], ["run.drive", "horse"]),
        (["run", "--source", "synthetic", "--head", "absent.pkl"], ["absent.pkl"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_error_that_the_user_can_fix_is_one_line(
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(arguments) == 2
    text = capsys.readouterr().err.strip()
    last = text.splitlines()[-1]
    assert last.startswith("telepresence: "), text
    assert "Traceback" not in text
    assert all(word in last for word in words), last


def test_json_is_written_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "doctor.json"
    assert run_command(["doctor", "--json", str(target)]) == 0
    figures = json.loads(target.read_text())
    assert figures["version"] == telepresence.__version__
    assert [path.name for path in target.parent.iterdir()] == ["doctor.json"]
    assert "torch" in capsys.readouterr().out


def test_json_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run_command(["doctor", "--json", str(tmp_path / "file" / "doctor.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_doctor_reports_a_broken_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "nvidia-smi"
    broken.write_text("#!/bin/sh\nexit 9\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "/proc/nowhere")
    monkeypatch.setenv("TELEPRESENCE_KERNEL_CACHE", str(broken / "cache"))
    (tmp_path / "face_landmarker.task").write_bytes(b"not a model")
    findings = {finding["topic"]: finding for finding in doctor(models=tmp_path)["findings"]}
    assert findings["host kernels"]["ok"] is None
    assert "no C++ compiler was found" in findings["host kernels"]["found"]
    assert findings["kernel cache"]["ok"] is False
    assert findings["face landmarks"]["ok"] is False
    assert findings["for the tests"]["advice"]
    assert "To fix" in capsys.readouterr().out


def test_doctor_checks_every_dependency(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    declared = {requirement.split(">")[0].split("=")[0] for requirement in project["dependencies"]}
    assert declared == set(NEEDED)


def test_an_unknown_command_exits_with_2(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "telepresence", "dance"], cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def handle_interrupts() -> None:
    """Restore the default handling of SIGINT, which shells and CI jobs ignore in background processes."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_exits_with_130_and_no_traceback(root: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "config.toml"
    os.mkfifo(pipe)  # keeps the command waiting for its configuration
    command = [sys.executable, "-m", "telepresence", "evaluate", "a", "b", "--config", str(pipe)]
    with (
        subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True, preexec_fn=handle_interrupts) as process,
        pipe.open("w"),  # returns once the command reads
    ):
        process.send_signal(signal.SIGINT)
        _, text = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "Traceback" not in text


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert run_command(["doctor"]) == 2
    text = capsys.readouterr().err
    assert "package rich," in text
    assert text.count("\n") == 1


def test_an_interpreter_without_packages_hands_over_to_the_environment_of_the_checkout(root: Path) -> None:
    if not (root / ".venv" / "bin" / "python").exists():
        pytest.skip("needs .venv: make setup")
    bare = [sys.executable, "-S", "-m", "telepresence", "--version"]  # -S: no site-packages
    done = subprocess.run(bare, cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"telepresence {telepresence.__version__}", done.stderr
