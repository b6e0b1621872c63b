"""Finding out whether AMX works: what is asked, what is remembered, and what each answer leads to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgellm.kernels.target import Target, target_for
from edgellm.platforms import amx
from edgellm.platforms.amx import AMXStatus, find_status
from edgellm.platforms.amx_probe import GAIN, LARGEST_DIFFERENCE, Measured, judge, measure

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux grants tile registers")
WITH_TILES = Target("sapphirerapids", frozenset(amx.FEATURES), "")


class Probe:
    """Answers, and counts how often it is asked."""

    def __init__(self, status: AMXStatus) -> None:
        self.status, self.asked = status, 0

    def __call__(self) -> AMXStatus:
        self.asked += 1
        return self.status


def test_a_cpu_without_the_features_is_not_probed(tmp_path: Path) -> None:
    probe = Probe(AMXStatus("works", 2.0))
    for missing in amx.FEATURES:
        target = Target("x", frozenset(amx.FEATURES) - {missing}, "")
        assert find_status(target, tmp_path, probe) == AMXStatus("absent")
    assert probe.asked == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("state", ["works", "refused", "ended", "wrong", "slower"])
def test_an_answer_is_kept(tmp_path: Path, state: str) -> None:
    probe = Probe(AMXStatus(state, 2.5 if state in ("works", "slower") else None))
    for _ in range(2):
        assert find_status(WITH_TILES, tmp_path / "new", probe) == probe.status
    assert probe.asked == 1


def test_no_answer_is_not_kept(tmp_path: Path) -> None:
    probe = Probe(AMXStatus("untested"))
    for _ in range(2):
        assert not find_status(WITH_TILES, tmp_path, probe).usable
    assert probe.asked == 2


@pytest.mark.parametrize("part", ["cpu", "system"])
def test_another_machine_or_system_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    find_status(WITH_TILES, tmp_path, Probe(AMXStatus("refused")))
    monkeypatch.setattr(amx, "_machine", lambda: {"cpu": "a", "system": "b", part: "c"})
    assert find_status(WITH_TILES, tmp_path, Probe(AMXStatus("works", 2.0))).usable


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"machine": 1, "status": {"state": "works"}}',
     '{"status": {"state": "works", "gain": 1.0}}'],
)  # fmt: skip
def test_a_damaged_answer_is_not_believed(tmp_path: Path, text: str) -> None:
    (tmp_path / "amx.json").write_text(text)
    assert find_status(WITH_TILES, tmp_path, Probe(AMXStatus("refused"))) == AMXStatus("refused")


@pytest.mark.parametrize("status", [{"state": "splendid", "gain": None}, {"state": "works", "gain": "much"}, 3])
def test_a_damaged_state_is_not_believed(tmp_path: Path, status: Any) -> None:
    found = {"machine": amx._machine(), "status": status}
    (tmp_path / "amx.json").write_text(json.dumps(found))
    assert find_status(WITH_TILES, tmp_path, Probe(AMXStatus("refused"))) == AMXStatus("refused")


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert find_status(WITH_TILES, tmp_path / "file" / "folder", Probe(AMXStatus("works", 2.0))).usable


@pytest.mark.parametrize(
    ("code", "state"),
    [("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "ended"), ("print('no JSON')", "untested"),
     ("raise SystemExit(1)", "untested"), ("print('{\"state\": \"slower\", \"gain\": 0.5}')", "slower")],
)  # fmt: skip
def test_what_becomes_of_the_child(monkeypatch: pytest.MonkeyPatch, code: str, state: str) -> None:
    run = subprocess.run

    def start(command: list[str], **settings: Any) -> Any:
        assert command[-1] == "edgellm.platforms.amx_probe"
        return run([sys.executable, "-c", code], **settings)

    monkeypatch.setattr(subprocess, "run", start)
    assert amx.run_probe().state == state


def test_a_grant_that_this_process_does_not_get(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(amx, "current_target", lambda: WITH_TILES)
    monkeypatch.setattr(amx, "find_status", lambda target, folder: AMXStatus("works", 2.0))
    for granted in (True, False):
        amx.amx_status.cache_clear()
        monkeypatch.setattr(amx, "request_permission", lambda granted=granted: granted)
        assert amx.amx_works() == granted
    assert amx.amx_status() == AMXStatus("refused")
    amx.amx_status.cache_clear()


def test_the_probe_multiplies_right() -> None:
    """In software: the results agree, and it is much slower than the other kernels."""
    measured = measure(emulated=True)
    assert 0 < measured.difference < LARGEST_DIFFERENCE / 2
    assert judge(measured).state == "slower"


def test_the_judgement() -> None:
    assert judge(Measured(0.007, GAIN)).usable
    assert judge(Measured(0.007, GAIN - 0.01)).state == "slower"
    assert judge(Measured(LARGEST_DIFFERENCE + 0.001, 9.0)).state == "wrong"
    assert judge(Measured(float("nan"), 9.0)).state == "wrong"


def test_the_probe_of_this_machine_answers() -> None:
    """Whatever this machine has: a state that means something, and never a crash where there are no such registers."""
    if target_for("native").has(*amx.FEATURES):
        assert amx.run_probe().state in ("works", "refused", "slower")
    else:
        assert amx.request_permission() in (True, False)
        assert not amx.amx_works()
