"""Two processes train a student as one does, under DDP, ZeRO-2 and ZeRO-3; the last batch leaves one with nothing.
Killed and started again, they end where they would have; several seeds run one after the other.

Equal means within 1e-4: sums of floats in another order, carried through some 20 steps of AdamW.
"""

import json
import re
import subprocess
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
from launchers import ENVIRONMENT, LAUNCHERS, LONG, ROOT
from recorded import TRAININGS, record_all
from safetensors.numpy import load_file
from student_shop import ITEMS, LEVELS, SIZE, K, Nothing, make_shop, make_teacher
from teacher_server import TeacherServer
from tiny_llms import NETWORKS, checkpoint

from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.semantic_ids import embeddings
from distill.semantic_ids.ids import SemanticIDs
from student.baseline import main as train_baseline
from student.config import BaselineConfig, Config
from student.setrec_config import SETRecSettings
from student.train import main

SETTINGS = {
    "precision": "no",
    "backbone": "causal",
    "variant": "dtr",
    "epochs": 2,
    "ranker_epochs": 1,
    "batch_size": 4,
    "candidates": K,
    "max_history": 4,
    "valid_users": 15,
    "dropout": 0.0,
    "width": 5,
    "margin": 0.3,
    "checkpoint_every": 2,
    "buffer_rows": 60,
    "tracker": "none",
}
# unequal lengths, weights of examples and positions drawn at random: what a sum over parts could get wrong
RECORDED = SETTINGS | {
    "epochs": 1, "checkpoint_every": 0, "valid_users": 2, "confidence": 0.5, "rank_within": 4, "alpha": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """17 users: the last global batch of 8 is one row."""
    folder = tmp_path_factory.mktemp("shop")
    make_shop(folder, [4, 4, 5, 6, 9, 13, 4, 4, 7, 5, 6, 8, 5, 5, 12, 6, 4], shards=1)
    make_teacher(folder)
    write_json(folder / "student.yaml", SETTINGS)  # JSON is YAML
    write_json(folder / "recorded.yaml", RECORDED)
    return folder


@pytest.fixture(scope="module")
def single(root):
    """One process trains the same global batches, each cut in two."""
    main(replace(Config(run=root, **SETTINGS), output=root / "single", accumulation=2))
    return root / "single"


def command(engine, root, output, *options):
    """The command under a launcher."""
    script = [ROOT / "student/train.py", "--config", root / "student.yaml", "--run", root, "--output", output]
    return [str(word) for word in [*LAUNCHERS[engine], *script, *options]]


def launch(engine, root, output, *options):
    """Run it; return what it logged."""
    words = command(engine, root, output, *options)
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=400, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def assert_same(output, expected):
    """Curves within 1e-4, and weights."""
    curves = [json.loads((path / "curve.json").read_text()) for path in (output, expected)]
    for phase in ("retriever", "ranker"):
        rows = [[list(row.values()) for row in curve[phase]] for curve in curves]
        np.testing.assert_allclose(*rows, rtol=1e-4)
    for name in ("model.safetensors", "ranker.safetensors"):
        actual, weights = load_file(output / name), load_file(expected / name)
        assert actual.keys() == weights.keys()
        for key, value in weights.items():
            np.testing.assert_allclose(actual[key], value, atol=1e-4, err_msg=key)
    assert not (output / "checkpoints").exists()


@pytest.mark.parametrize("engine", ["ddp", pytest.param("zero2", marks=LONG), "zero3"])
def test_two_processes_train_as_one(root, single, engine):
    launch(engine, root, root / engine)
    assert_same(root / engine, single)


def test_two_processes_learn_on_policy_as_one(root):
    """Under ZeRO-2; both search with their copy of the student and ask one teacher, behind a server."""
    options = {"backbone": "nested", "on_policy": 0.5, "list_loss": "listnet", "scope": "trie", "ranker_epochs": 1}
    ids = artifacts.read(root / "semantic_ids", "semantic_ids").fingerprint
    facts = {"teacher": "abc", "semantic_ids": ids, "levels": LEVELS, "codebook_size": SIZE}
    with TeacherServer(facts) as server:
        reference = root / "on-policy-alone"
        config = Config(run=root, **SETTINGS | options | {"teacher_url": server.url})
        main(replace(config, output=reference, accumulation=2))
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        launch("zero2", root, root / "on-policy-zero2", *words, "--teacher_url", server.url)
    assert_same(root / "on-policy-zero2", reference)


@pytest.fixture(scope="module")
def large(root):
    """A language model with adapters: one process, the same global batches cut in two."""
    names = SemanticIDs.load(root / "semantic_ids", ITEMS).tokens()
    options = {"init": checkpoint(root / "base", NETWORKS["llama"], names), "lora_rank": 2}
    main(replace(Config(run=root, **SETTINGS), output=root / "large", accumulation=2, **options))
    return root / "large"


@pytest.mark.parametrize("engine", [pytest.param("ddp", marks=LONG), "zero3"])
def test_two_processes_train_a_large_student_as_one(root, large, engine):
    """Adapters and codewords' rows train, all else is frozen; ZeRO-3 cuts both, and DTR's two models."""
    launch(engine, root, root / f"large-{engine}", "--init", root / "base", "--lora_rank", 2)
    assert_same(root / f"large-{engine}", large)


@pytest.fixture(scope="module")
def alone(root):
    """Loss and gradient norm of every step: one process with batches of 8."""
    return record_all(root, Config(run=root, **(RECORDED | {"batch_size": 8})))


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 2), (2, 1)])
def test_losses_and_gradient_norms_do_not_depend_on_the_split(root, alone, processes, accumulation):
    """1 x 8 = 2 x 4 = 4 twice; within 1e-4 after some steps of AdamW, 1e-5 before the first."""
    path = root / f"{processes}-{accumulation}.json"
    if processes == 1:
        actual = record_all(root, Config(run=root, **(RECORDED | {"batch_size": 4, "accumulation": 2})))
    else:
        words = [*LAUNCHERS["ddp"], ROOT / "tests/distributed/recorded.py", root, path, 4, accumulation]
        done = subprocess.run(
            [str(word) for word in words], capture_output=True, text=True, env=ENVIRONMENT, timeout=400, cwd=root
        )
        assert done.returncode == 0, done.stderr[-3000:]
        actual = json.loads(path.read_text())
    assert actual.keys() == alone.keys() and len(actual) == len(TRAININGS)
    for name, steps in alone.items():
        assert len(steps) > 2 and min(norm for _, norm in steps) > 0, name
        if name != "dtr-nested-list_loss":  # GRPO weighs by advantages around 0, so its loss has either sign
            assert min(loss for loss, _ in steps) > 0, name
        np.testing.assert_allclose(actual[name][0], steps[0], rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(actual[name], steps, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("engine", ["ddp", pytest.param("zero2", marks=LONG)])
def test_seeds_one_after_the_other(root, engine):
    """The second seed trains in the processes of the first, and ends as it does alone."""
    output = root / f"seeds-{engine}"
    logged = launch(engine, root, output, "--variant", "tiger", "--epochs", 1, "--seeds", "0,1")
    assert re.search(r"tiger: validation NDCG@10 .*\(seed 0\), .*\(seed 1\)", logged)
    config = Config(run=root, **SETTINGS | {"variant": "tiger", "epochs": 1, "accumulation": 2, "seed": 1})
    main(replace(config, output=root / f"{engine}-seed1-alone"))
    for name in ("seed0", "seed1"):
        assert artifacts.read(root / f"seeds-{engine}-{name}", "student").config["seed"] == int(name[-1])
    weights, alone = (
        load_file(root / name / "model.safetensors") for name in (f"seeds-{engine}-seed1", f"{engine}-seed1-alone")
    )
    for key, value in alone.items():
        np.testing.assert_allclose(weights[key], value, atol=1e-4, err_msg=key)


@pytest.fixture(scope="module")
def token_sources(root):
    """What SETRec's tokens are computed from: text embeddings and a SASRec."""
    dataset, names = artifacts.read(root / "dataset", "dataset"), [f"i{number}" for number in range(ITEMS)]
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 6)).astype(np.float32)
    with ArtifactJob("embeddings", Nothing(), root / "embeddings", [dataset]).write() as folder:
        embeddings.write(folder, vectors, names)
    train_baseline(BaselineConfig(run=root, dim=8, layers=1, epochs=1, tracker="none"))


SETREC = {"backbone": "setrec", "layers": 1, "setrec": SETRecSettings(semantic=2, hidden=[8])}
ITEM_MODELS = [pytest.param("sasrec", engine, marks=LONG) for engine in ("ddp", "zero2")]
ITEM_MODELS += [("sasrec", "zero3"), ("causal", "ddp"), ("t5", "zero2")]


@pytest.mark.parametrize(("network", "engine"), ITEM_MODELS)
def test_two_processes_train_an_item_model_as_one(root, token_sources, network, engine):
    """SETRec too, with either trunk: the last batch leaves one process with a row of weight 0."""
    options, words = {"variant": "dwr", "backbone": "sasrec", "dim": 8}, ["--backbone", "sasrec"]
    if network != "sasrec":
        options |= SETREC | {"setrec": replace(SETREC["setrec"], trunk=network)}
        words = ["--backbone", "setrec", "--layers", 1, "--setrec.trunk", network, "--setrec.semantic", 2]
        words += ["--setrec.hidden", "[8]"]
    reference = root / f"{network}-{engine}-alone"
    main(replace(Config(run=root, **SETTINGS | options), output=reference, accumulation=2))
    output = root / f"{network}-{engine}"
    launch(engine, root, output, "--variant", "dwr", "--dim", 8, *words)
    curves = [json.loads((path / "curve.json").read_text()) for path in (output, reference)]
    np.testing.assert_allclose(*([list(row.values()) for row in curve] for curve in curves), rtol=1e-4)
    weights, alone = (load_file(path / "model.safetensors") for path in (output, reference))
    assert weights.keys() == alone.keys()
    for key, value in alone.items():
        np.testing.assert_allclose(weights[key], value, atol=1e-4, err_msg=key)


def test_killed_and_started_again(root):
    """All processes at once, with dropout drawn by each: the very same weights."""

    options = ["--variant", "dwr", "--dropout", "0.2", "--drop_items", "0.1"]
    launch("ddp", root, root / "whole", *options)
    checkpoints = root / "killed.partial/checkpoints"
    with subprocess.Popen(
        command("ddp", root, root / "killed", *options),
        env=ENVIRONMENT,
        cwd=root,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as launched:
        waited = time.time() + 120
        while launched.poll() is None and time.time() < waited and not list(checkpoints.glob("step-*[0-9]")):
            time.sleep(0.002)
        family = [*psutil.Process(launched.pid).children(recursive=True), psutil.Process(launched.pid)]
        assert len(family) >= 3
        for process in family:
            process.kill()
    assert not (root / "killed").exists()
    message = launch("ddp", root, root / "killed", *options)
    assert re.search(r"dwr retriever: goes on from step \d+ ", message)
    actual, expected = (artifacts.read(root / name, "student") for name in ("killed", "whole"))
    assert (root / "killed/model.safetensors").read_bytes() == (root / "whole/model.safetensors").read_bytes()
    assert actual.fingerprint == expected.fingerprint
