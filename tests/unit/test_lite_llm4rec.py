"""Lite-LLM4Rec from a pretrained language model. What it shares with SASRec: test_item_models.py."""

from dataclasses import replace

import pytest
import torch
from breaking_off import BrokenOffError, break_at
from student_shop import ITEMS, make_shop
from tiny_llms import SMALL
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel

from distill.data.dataset import PAD
from distill.runtime import artifacts
from distill.runtime.errors import UserError
from student import train
from student.baseline import main
from student.config import BaselineConfig, Config
from student.item_recommender import ItemRecommender
from student.lite_llm4rec import build_lite_llm4rec

HISTORIES = torch.tensor([[3, 1, 4, 7], [5, 2, PAD, PAD]])


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    root = tmp_path_factory.mktemp("shop")
    make_shop(root, [3, 4, 5, 6, 9, 4, 7, 3, 8, 5])
    return root


def config_of(shop, base, **more):
    settings = {"dim": 8, "epochs": 1, "batch_size": 8, "max_history": 9, "dropout": 0.0, "tracker": "none"} | more
    settings.setdefault("precision", "no")  # Accelerate knows one a process
    return BaselineConfig(run=shop, network="lite-llm4rec", base=base, **settings)


@torch.no_grad()
def test_scores_are_products_of_the_language_models_last_state(shop, base):
    """Item rows to the model's width, its layers, back to the rows' width; then a softmax over the products."""
    model = build_lite_llm4rec(config_of(shop, base), ITEMS, None).eval()
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    rows = model.items.weight
    for history in HISTORIES:
        items = history[history != PAD]
        vectors = rows[items] * 8**0.5 @ model.reader.weight.T
        hidden = plain(inputs_embeds=vectors[None], output_hidden_states=True).hidden_states[-1][0, -1]
        expected = (rows @ (model.projection.weight @ hidden)).log_softmax(-1)
        places = torch.arange(len(items)) == len(items) - 1
        torch.testing.assert_close(model(items[None], places[None])[0], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_inputs_are_as_large_as_the_vocabularys_rows(shop, base):
    model = build_lite_llm4rec(config_of(shop, base, dim=64), ITEMS, None)
    table = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    vectors = model.reader(model.items(torch.arange(ITEMS)))
    assert vectors.std().item() == pytest.approx(table.std().item(), rel=0.2)


@pytest.mark.parametrize("loss", ["ce", "list", "rank", "list+rank"])
def test_trains_and_goes_on_where_it_was_broken_off(loss, shop, base, tmp_path, monkeypatch):
    """The first layer of the base: the very same bytes, of weights that have all learnt."""
    settings = {"loss": loss, "layers": 1, "margin": 0.1, "dropout": 0.2, "checkpoint_every": 2, "epochs": 2}
    config = config_of(shop, base, **settings, output=tmp_path / "whole")
    main(config)
    whole = artifacts.read(tmp_path / "whole", "baseline")
    recommender = ItemRecommender.from_pretrained(whole.folder)
    assert recommender.model.config.layers == 1 and recommender.model.config.pretrained
    if loss in ("ce", "list+rank"):
        with monkeypatch.context() as patch:
            break_at(patch, 2)
            with pytest.raises(BrokenOffError):
                main(replace(config, output=tmp_path / "broken"))
        main(replace(config, output=tmp_path / "broken"))
        assert artifacts.read(tmp_path / "broken", "baseline").fingerprint == whole.fingerprint
    before = AutoModelForCausalLM.from_pretrained(base).base_model.state_dict()
    weights = recommender.model.trunk.state_dict()
    assert weights and all(not torch.equal(value, before[name]) for name, value in weights.items())
    assert not any("layers.1" in name or "embed_tokens" in name for name in weights)


def test_both_commands_train_it(shop, base, tmp_path):
    config = config_of(shop, base, output=tmp_path / "one", max_history=20)
    main(config)
    same = {
        name: getattr(config, name) for name in ("run", "base", "dim", "batch_size", "epochs", "dropout", "precision")
    }
    train.main(Config(backbone="lite-llm4rec", variant="tiger", output=tmp_path / "two", tracker="none", **same))
    one, two = (artifacts.read(tmp_path / name, "baseline") for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "nowhere"}, "--base nowhere is no Hugging Face checkpoint"),
        ({"layers": 3}, r"--layers is 3, and .*base has 2 layers"),
        ({"max_history": 65}, r"Histories of 65 items take 65 places, and --base .*base has 64"),
        ({"base": None, "dim": 12}, "--dim is 12; expected a multiple of 8"),
        ({"network": "gru4rec"}, "--base is for setrec, lite-llm4rec, e4srec; the network is gru4rec"),
        ({"base": "bert"}, "cannot read a history of item vectors: a state depends on the items after it"),
    ],
)
def test_what_is_refused(changes, message, shop, base, tmp_path):
    if changes.get("base") == "bert":
        bert = BertLMHeadModel(BertConfig(vocab_size=9, **SMALL, initializer_range=0.5))
        bert.save_pretrained(tmp_path / "bert")
    if changes.get("base"):
        changes = changes | {"base": tmp_path / "bert" if changes["base"] == "bert" else base / ".." / "nowhere"}
        message = message.replace("--base nowhere", "--base .*nowhere")
    with pytest.raises(UserError, match=message):
        main(replace(config_of(shop, base, output=tmp_path / "output"), **changes))
    assert not (tmp_path / "output").exists()
