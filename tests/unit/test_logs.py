"""Logs that are no terminal: a line a minute, and nothing that nobody asked for."""

import importlib.util
import logging
import os
import subprocess
import sys
import time

import pytest

from distill.runtime import logs
from distill.runtime.config import CONFIGS


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when told."""
    seconds = [0.0]
    for module in (logs.time, time):
        monkeypatch.setattr(module, "monotonic", lambda: seconds[0])
    return seconds


def test_a_line_a_minute_and_one_at_the_end(clock, capsys):
    bar = logs.progress_bar(total=100, desc="teacher")
    for _ in range(99):
        clock[0] += 3
        bar.update()
        bar.set_postfix(loss=1)  # draws the bar again
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line[9:13] for line in lines] == [" 20%", " 40%", " 60%", " 80%", " 99%"]


def test_a_short_bar_is_one_line(capsys):
    for _ in logs.progress_bar(range(5), desc="items"):
        pass
    bar = logs.progress_bar(total=5, desc="nothing done")
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("items: 100%")


def test_bars_of_hugging_face_are_off(monkeypatch):
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.delenv(name, raising=False)
    logs.quiet_libraries()
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
    from transformers.utils.logging import is_progress_bar_enabled

    logs.quiet_libraries()  # imported before
    assert not is_progress_bar_enabled()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_no_word_of_kernels_for_4_bit_weights():
    code = "from distill.runtime import logs; import peft"
    environment = os.environ | {"PYTHONPATH": str(CONFIGS.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "gemm_4bit_forward" not in done.stderr
    warnings = logging.getLogger("bitsandbytes.backends.cpu.ops")
    record = logging.LogRecord(
        "x", logging.WARNING, "", 0, "Failed to load CPU gemm_4bit_forward from %s", ("y",), None
    )
    assert not warnings.filter(record)
    record.msg = "%s else is wrong"
    assert warnings.filter(record)
