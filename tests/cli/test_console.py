"""Progress, notices, safe text."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.cli import console
from edgellm.cli.console import NoticeHandler, ProgressDisplay, cancel_on_interrupt, clean, notice, number, one_line


@given(st.text())
def test_clean_text_has_no_control_characters(text: str) -> None:
    cleaned = clean(text)
    assert all(unicodedata.category(character) != "Cc" or character in "\n\t" for character in cleaned)
    assert cleaned == "".join(c for c in text if unicodedata.category(c) != "Cc" or c in "\n\t")
    assert "\n" not in one_line(text)


def test_numbers() -> None:
    assert [number(value) for value in (0, 999, 1234, 1234567)] == ["0", "999", "1 234", "1 234 567"]


_CHATTER = """
import os, sys
from edgellm.cli.console import notice, quiet_libraries
os.write(2, b"before;")
try:
    with quiet_libraries():
        os.write(2, b"chatter;")
        notice("within;")
        raise ValueError
except ValueError:
    os.write(2, b"after;")
    print("end", file=sys.stderr)
"""


def test_what_libraries_write_of_their_own_accord_is_not_seen(capfd: pytest.CaptureFixture[str]) -> None:
    result = subprocess.run([sys.executable, "-c", _CHATTER], capture_output=True, text=True, check=True)
    assert result.stderr.replace("\n", "") == "before;within;after;end"
    with console.quiet_libraries():  # here standard error is pytest's object
        notice("seen")
    assert "seen" in capfd.readouterr().err


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_PATIENCE", 0.0)
    monkeypatch.setattr(console, "_LINE_PATIENCE", 0.0)
    monkeypatch.setattr(console, "_LINE_EVERY", 0.0)


def test_lines_where_no_bar_can_be_drawn(patient: None, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay() as display:
        display("download", 1_000_000, 3_000_000)
        display("download", 3_000_000, 3_000_000)
        display("kernels", 1, 1200)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "downloading: 1.0 MB of 3.0 MB, 0 bytes/s",
        "compiling kernels: 1 of 1 200",
    ]


def test_quick_stages_are_not_worth_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay() as display:
        for done in range(100):
            display("weights", done, 100)
    assert capsys.readouterr().err == ""


def test_bar_on_a_terminal(patient: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with ProgressDisplay() as display:
        display("download", 1_000_000, 3_000_000)
        console.notice("something\nhappened")
        display("unpack", 1_000_000, 2_000_000)
    assert ProgressDisplay.active is None
    assert "something happened" in capsys.readouterr().err


def test_log_messages_become_notices(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("test")
    logger.addHandler(NoticeHandler())
    logger.warning("weights of type %s\x1b[1m are converted", "IQ3_S")
    assert capsys.readouterr().err == "weights of type IQ3_S[1m are converted\n"


def test_first_interrupt_cancels_and_the_second_one_breaks() -> None:
    with cancel_on_interrupt() as cancel:
        os.kill(os.getpid(), signal.SIGINT)
        assert cancel.wait(5)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            cancel.clear()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
