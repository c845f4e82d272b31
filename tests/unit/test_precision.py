"""bfloat16 in the students' search, scores and training: when it is chosen, and how near its results are."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from student_shop import make_shop
from torch import nn

from distill.runtime import artifacts
from distill.runtime import precision as hardware
from student import precision
from student.config import BaselineConfig, Config
from student.config_checks import settle_precision
from student.models import BACKBONES
from student.models.layers import attend, codeword_logits, level_logits
from student.recommender import Recommender

ROOT = Path(__file__).resolve().parents[2]
LEVELS, SIZE, N_ITEMS = 3, 16, 60


def student(backbone, ranker=False):
    network, sizes, presets = BACKBONES[backbone]
    torch.manual_seed(0)
    models = [network(sizes(LEVELS, SIZE, **presets["demo"])).eval() for _ in range(1 + ranker)]
    codes = np.random.default_rng(0).integers(0, SIZE, (N_ITEMS, LEVELS))
    return Recommender(models[0], codes, [str(i) for i in range(N_ITEMS)], [""] * N_ITEMS, *models[1:])


@pytest.mark.parametrize("has_bf16", [True, False])
def test_large_students_use_bf16_where_the_hardware_has_it(monkeypatch, has_bf16):
    monkeypatch.setattr(hardware, "has_bf16", lambda: has_bf16)
    small, large = nn.Linear(1999, 2000), nn.Linear(1999, 2001)  # 2,000 · 2,000 parameters, and 2,000 more
    monkeypatch.setattr(precision, "MIN_PARAMETERS", 4_000_001)
    assert precision.resolve_precision("auto", small) == "float32"
    assert precision.resolve_precision("auto", large) == ("bfloat16" if has_bf16 else "float32")
    for setting in ("float32", "bfloat16"):
        assert precision.resolve_precision(setting, small) == precision.resolve_precision(setting, large) == setting


@pytest.mark.parametrize("ranker", [False, True])
@pytest.mark.parametrize("backbone", ["seq2seq", "causal", "nested"])
def test_scores_are_near_those_of_float32(backbone, ranker):
    """The log-probabilities of all items, by one pass over the trie, of candidates, and of the beams."""
    recommender = student(backbone, ranker)
    histories = np.random.default_rng(1).integers(0, N_ITEMS, (5, 6))
    candidates = np.tile(np.arange(N_ITEMS), (5, 1))

    def scores():
        items, beams = recommender.rank_items(histories, N_ITEMS, exclude_bought=False)  # exact: as many beams as items
        beams = np.take_along_axis(beams, items.argsort(1), 1)
        return recommender.score_items(histories), recommender.score_candidates(histories, candidates), beams

    exact = scores()
    recommender.precision = "bfloat16"
    for rounded, expected in zip(scores(), exact, strict=True):
        assert rounded.dtype == np.float32
        difference = np.abs(rounded - expected)
        assert 0 < difference.max() < 0.15  # of about 8; 8 bits of a number up to 1 are .004, in some 30 products
        # ranks follow from the differences within a user, which shared rounding leaves alone
        correlation = [np.corrcoef(*pair)[0, 1] for pair in zip(rounded, expected, strict=True)]
        assert min(correlation) > 0.995


def test_logits_of_codewords_are_float32_under_autocast():
    torch.manual_seed(0)
    states, head = torch.randn(2, 3, LEVELS, 8), torch.randn(LEVELS, SIZE, 8)
    products = torch.stack([states[..., level, :] @ head[level].T for level in range(LEVELS)], dim=-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (states @ head[0].T).dtype == torch.bfloat16  # an ordinary product is rounded
        torch.testing.assert_close(level_logits(states, head), products)
        torch.testing.assert_close(codeword_logits(states[..., 0, :], head[0]), products[..., 0, :])
    assert codeword_logits(states.bfloat16(), head[0].bfloat16()).dtype == torch.float32


def test_attention_by_plain_products_is_the_fused_one():
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(2, 3, length, 8) for length in (4, 5, 5))
    bias = torch.randn(2, 1, 4, 5)
    fused = attend(queries, keys, values, bias)
    with torch.autocast("cpu", torch.bfloat16):
        plain = attend(queries, keys, values, bias)
    expected = torch.einsum(
        "bhqk,bhkd->bhqd", (torch.einsum("bhqd,bhkd->bhqk", queries, keys) + bias).softmax(-1), values
    )
    torch.testing.assert_close(fused, expected)
    torch.testing.assert_close(plain.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("config", "settled"),
    [
        (Config(), "no"),
        (Config(preset="small"), "no"),
        (Config(preset="tiger-4m"), "auto"),
        (Config(backbone="causal", init=Path("base")), "auto"),
        (Config(precision="bf16"), "bf16"),
        (Config(preset="lohrec-13m", precision="no"), "no"),
        (BaselineConfig(), "no"),
        (BaselineConfig(network="setrec", base=Path("base")), "auto"),
    ],
)
def test_small_networks_train_in_float32_on_every_machine(config, settled):
    assert settle_precision(config).precision == settled


@pytest.mark.parametrize("has_bf16", [True, False])
def test_large_networks_train_in_bf16_where_the_hardware_has_it(monkeypatch, has_bf16):
    monkeypatch.setattr(hardware, "has_bf16", lambda: has_bf16)
    assert hardware.choose_mixed_precision("auto", large=True) == ("bf16" if has_bf16 else "no")
    assert hardware.choose_mixed_precision("auto", large=False) == "no"
    for setting in ("no", "bf16", "fp16"):
        for large in (True, False):
            assert hardware.choose_mixed_precision(setting, large) == setting


@pytest.mark.parametrize(
    ("chosen", "large", "line"),
    [
        ("bf16", True, r"bf16 \(the (GPU|processor) has it; "),
        ("no", True, r"float32 \(the (GPU|processor) has no bf16; "),
        ("no", False, r"float32 \(the network is small; "),
    ],
)
def test_the_chosen_precision_is_said_in_one_line(capsys, chosen, large, line):
    hardware.log_mixed_precision("auto", chosen, large)
    hardware.log_mixed_precision("fp16", "fp16", large)
    assert re.fullmatch(f"precision: {line}--precision chooses another\\)\n", capsys.readouterr().err)


def test_training_says_its_precision(tmp_path):
    """By the command, in a process of its own: Accelerate knows one precision a process."""
    make_shop(tmp_path, [3, 4, 5, 6])
    words = f"--run {tmp_path} --variant tiger --backbone nested --preset tiger-4m --epochs 1 --width 4 --tracker none"
    done = subprocess.run(
        [sys.executable, ROOT / "student/train.py", *words.split()],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    manifest = artifacts.read(tmp_path / "students/tiger", "student").manifest
    chosen = "bf16" if hardware.has_bf16() else "no"
    assert manifest["identity"]["config"]["precision"] == "auto" and manifest["facts"]["precision"] == chosen
    assert f"precision: {'bf16' if chosen == 'bf16' else 'float32'} (the " in done.stderr
