"""E4SRec: scores by the definition, what trains and what stays frozen, and that it learns."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from breaking_off import BrokenOffError, break_at
from reference import e4srec_naive as naive
from student_shop import ITEMS, make_shop, write_network
from transformers import AutoModelForCausalLM

from distill.data.dataset import PAD, Dataset, write_dataset
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.errors import UserError
from student import train
from student.baseline import main
from student.config import BaselineConfig, Config
from student.e4srec import build_e4srec
from student.e4srec_config import E4SRecSettings
from student.item_recommender import ItemRecommender
from student.models.item_models import SASRec, SASRecConfig

HISTORIES = torch.tensor([[3, 1, 4, 7], [5, 2, PAD, PAD]])


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def write_sasrec(folder, n_items, dataset=None):
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(n_items, dim=8))
    with torch.no_grad():
        model.items.weight.normal_()
    write_network(folder, model, dataset)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    root = tmp_path_factory.mktemp("shop")
    make_shop(root, [3, 4, 5, 6, 9, 4, 7, 3, 8, 5])
    write_sasrec(root / "baselines/sasrec", ITEMS, root / "dataset")
    return root


def config_of(shop, base, **more):
    settings = {"dim": 8, "epochs": 1, "batch_size": 8, "max_history": 9, "dropout": 0.0, "tracker": "none"} | more
    settings.setdefault("precision", "no")  # Accelerate knows one a process
    return BaselineConfig(**{"run": shop, "network": "e4srec", "base": base} | settings)


@torch.no_grad()
def test_scores_equal_the_definition(shop, base):
    model = build_e4srec(config_of(shop, base), ITEMS, shop / "baselines/sasrec").eval()
    vectors = ItemRecommender.from_pretrained(shop / "baselines/sasrec").model.items.weight
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    for history in HISTORIES:
        items = history[history != PAD]
        places = torch.arange(len(history)) == len(items) - 1
        expected = naive.scores(items.tolist(), vectors, model.reader.weight, model.items.head.weight, plain)
        torch.testing.assert_close(model(history[None], places[None])[0], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_inputs_are_as_large_as_the_vocabularys_rows(shop, base):
    model = build_e4srec(config_of(shop, base), ITEMS, shop / "baselines/sasrec")
    table = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    vectors = model.reader(model.items(torch.arange(ITEMS)))
    assert vectors.std().item() == pytest.approx(table.std().item(), rel=0.2)


def test_adapters_projection_and_head_are_all_that_trains(shop, base):
    def trained(rank):
        config = config_of(shop, base, e4srec=E4SRecSettings(rank))
        model = build_e4srec(config, ITEMS, shop / "baselines/sasrec")
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    assert {name for name in trained(None) if ".lora_" not in name} == {"items.head.weight", "reader.weight"}
    assert any(".lora_" in name for name in trained(None)) and not any(".lora_" in name for name in trained(0))
    assert "trunk.layers.1.mlp.up_proj.weight" in trained(0)


def test_trains_and_goes_on_where_it_was_broken_off(shop, base, tmp_path, monkeypatch):
    """The very same bytes; SASRec's vectors are as they were, and the adapters are in the saved weights of the base."""
    config = config_of(shop, base, dropout=0.2, checkpoint_every=2, epochs=2, lr=1e-2, output=tmp_path / "whole")
    main(config)
    whole = artifacts.read(tmp_path / "whole", "baseline")
    source = artifacts.read(shop / "baselines/sasrec", "baseline").fingerprint
    assert whole.inputs[f"baseline/cf_source-{source[:8]}"] == source
    with monkeypatch.context() as patch:
        break_at(patch, 2)
        with pytest.raises(BrokenOffError):
            main(replace(config, output=tmp_path / "broken"))
    main(replace(config, output=tmp_path / "broken"))
    assert artifacts.read(tmp_path / "broken", "baseline").fingerprint == whole.fingerprint
    model = ItemRecommender.from_pretrained(whole.folder).model
    source = ItemRecommender.from_pretrained(shop / "baselines/sasrec").model
    assert torch.equal(model.items.weight, source.items.weight) and model.config.lora_rank == 0
    before, after = AutoModelForCausalLM.from_pretrained(base).base_model.state_dict(), model.trunk.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in after if "_proj" in name}  # adapters are beside the linear maps alone


def test_both_commands_train_it(shop, tmp_path):
    config = config_of(shop, None, output=tmp_path / "one", max_history=20)
    main(config)
    same = {name: getattr(config, name) for name in ("run", "dim", "batch_size", "epochs", "dropout")}
    train.main(Config(backbone="e4srec", variant="tiger", output=tmp_path / "two", tracker="none", **same))
    one, two = (artifacts.read(tmp_path / name, "baseline") for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint


@pytest.mark.parametrize("backbone", ["nested", "sasrec"])
def test_the_students_command_refuses_its_settings_for_other_networks(backbone, shop):
    with pytest.raises(UserError, match=f"--e4srec is for e4srec; the network is {backbone}"):
        train.main(Config(run=shop, backbone=backbone, variant="tiger", e4srec=E4SRecSettings(4)))


def test_learns_a_circle_of_items(tmp_path):
    """Everybody walks round twelve items; the vectors that it reads are random, and differ."""
    rng = np.random.default_rng(0)
    sequences = [(rng.integers(12) + np.arange(rng.integers(4, 8))) % 12 for _ in range(60)]
    with ArtifactJob("dataset", Nothing(), tmp_path / "dataset").write() as output:
        items = pa.table({"item_id": [f"i{number}" for number in range(12)]})
        write_dataset(output, items, [f"u{number}" for number in range(60)], sequences)
    write_sasrec(tmp_path / "baselines/sasrec", 12, tmp_path / "dataset")
    main(config_of(tmp_path, None, dim=16, layers=1, epochs=12, batch_size=16, lr=2e-2))
    recommender = ItemRecommender.from_pretrained(tmp_path / "baselines/e4srec")
    examples = Dataset.load(tmp_path / "dataset").examples("test")
    assert (recommender.rank_items(examples.histories, 1)[0][:, 0] == examples.targets).mean() > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sasrec": "itself"}, "is an e4srec itself; name a SASRec, GRU4Rec or FMLP-Rec"),
        ({"sasrec": "other"}, "has 12 items, the data set 40"),
        ({"item_text": "add"}, "e4srec reads the item embeddings of --sasrec alone"),
        ({"base": None, "e4srec": E4SRecSettings(4)}, "--e4srec.lora_rank is for a pretrained model; give --base"),
        ({"network": "sasrec", "base": None, "e4srec": E4SRecSettings(4)}, "--e4srec is for e4srec; the network is sa"),
        ({"network": "gru4rec", "base": None, "sasrec": "other"}, "--sasrec is for setrec, e4srec, dreamrec; the"),
        ({"base": None, "dim": 12}, "--dim is 12; expected a multiple of 8"),
        ({"layers": 3}, r"--layers is 3, and .*base has 2 layers"),
        ({"max_history": 65}, r"Histories of 65 items take 65 places, and --base .*base has 64"),
    ],
)
def test_what_is_refused(changes, message, shop, base, tmp_path):
    if changes.get("sasrec") == "itself":
        main(config_of(shop, None, output=tmp_path / "itself"))
    elif changes.get("sasrec"):
        write_sasrec(tmp_path / "other", 12)
    if "sasrec" in changes:
        changes = changes | {"sasrec": tmp_path / changes["sasrec"]}
    with pytest.raises(UserError, match=message):
        main(replace(config_of(shop, base, output=tmp_path / "output"), **changes))
    assert not (tmp_path / "output").exists()
