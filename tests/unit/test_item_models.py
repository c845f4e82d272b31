"""Networks over items: no look ahead, padding that changes nothing, losses by hand, and training that learns."""

import dataclasses
import json
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from breaking_off import BrokenOffError, break_at
from student_shop import make_shop, windows_of

from distill import losses
from distill.data.dataset import PAD, Dataset, write_dataset
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.config import parse
from distill.runtime.errors import UserError
from student import train
from student.baseline import main
from student.config import ITEM_BACKBONES, BaselineConfig, Config
from student.config_checks import baseline_config
from student.item_batches import Candidates, ItemBatchSampler, read_windows
from student.item_recommender import ItemRecommender
from student.models.item_models import ITEM_MODELS
from student.objective import item_loss
from student.trainer import PhaseTrainer

N_ITEMS = 12
OTHER_TESTS = ("setrec", "dreamrec", "e4srec")  # each in a file of its own
NEXT_ITEM = [name for name in ITEM_MODELS if name not in OTHER_TESTS]


@dataclass(frozen=True)
class Nothing:
    """No settings."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Everybody walks round a circle of twelve items."""
    folder, rng = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    sequences = [(rng.integers(N_ITEMS) + np.arange(rng.integers(4, 8))) % N_ITEMS for _ in range(60)]
    with ArtifactJob("dataset", Nothing(), folder / "dataset").write() as output:
        items = pa.table({"item_id": [f"i{number}" for number in range(N_ITEMS)]})
        write_dataset(output, items, [f"u{number}" for number in range(60)], sequences)
    return folder


def model_of(name, seed=0, n_items=N_ITEMS):
    torch.manual_seed(seed)
    network, config = ITEM_MODELS[name]
    model = network(config(n_items, max_history=4, dim=8)).eval()
    with torch.no_grad():
        model.items.weight.normal_(0, 0.5)
    return model


@pytest.mark.parametrize("name", NEXT_ITEM)
class TestNetworks:
    @torch.no_grad()
    def test_a_state_depends_only_on_earlier_items(self, name):
        model = model_of(name)
        items = torch.tensor([[3, 1, 4, 7], [3, 1, 9, PAD], [3, PAD, PAD, PAD]])
        hidden = model(items)
        torch.testing.assert_close(hidden[0, :2], hidden[1, :2])
        torch.testing.assert_close(hidden[0, 0], hidden[2, 0])
        assert (hidden[0, 2] - hidden[1, 2]).abs().max() > 1e-3
        swapped = model(torch.tensor([[1, 3, 4, 7]]))
        assert (hidden[0, 3] - swapped[0, 3]).abs().max() > 1e-3  # order counts

    def test_scores_are_those_of_each_history_alone(self, name, tmp_path):
        recommender = ItemRecommender(model_of(name), {"network": name})
        histories = np.array([[3, 1, 4, 7, 2, 5], [3, 1, PAD, PAD, PAD, PAD], [8, PAD, PAD, PAD, PAD, PAD]])
        actual = recommender.score_items(histories)
        for row, history in enumerate(([4, 7, 2, 5], [3, 1], [8])):  # the last four items have a place
            hidden = recommender.model(torch.tensor([history]))[0, -1]
            expected = (hidden @ recommender.model.items.weight.T).log_softmax(-1)
            np.testing.assert_allclose(actual[row], expected.detach().numpy(), atol=1e-5)
        items, scores = recommender.rank_items(histories, 12, exclude_bought=True)
        for row, history in enumerate(histories):
            bought = set(history.tolist())
            order = [item for item in np.argsort(-actual[row], kind="stable") if item not in bought]
            assert items[row].tolist() == order + [-1] * (12 - len(order))
            np.testing.assert_allclose(scores[row, : len(order)], actual[row, order])
        recommender.save_pretrained(tmp_path)
        np.testing.assert_array_equal(ItemRecommender.from_pretrained(tmp_path).score_items(histories), actual)

    def test_learns_and_is_the_same_again(self, name, root, tmp_path):
        config = BaselineConfig(
            run=root, network=name, dim=16, layers=1, dropout=0.1, epochs=12, batch_size=16, lr=2e-2
        )
        for output in ("one", "two"):
            main(replace(config, output=tmp_path / output))
        one, two = (artifacts.read(tmp_path / output, "baseline") for output in ("one", "two"))
        assert one.fingerprint == two.fingerprint
        recommender, examples = (
            ItemRecommender.from_pretrained(one.folder),
            Dataset.load(root / "dataset").examples("test"),
        )
        assert (recommender.rank_items(examples.histories, 1)[0][:, 0] == examples.targets).mean() > 0.9


def test_windows(root):
    """Each training target once, with the items before it, up to the window's edge."""
    data = Dataset.load(root / "dataset")
    ranges, _ = read_windows(data, None, 3)
    actual, seen = ranges.take(np.arange(len(ranges))), []
    for inputs, targets in zip(actual.inputs.tolist(), actual.targets.tolist(), strict=True):
        known = [target for target in targets if target != PAD]
        assert [item for item in inputs if item != PAD][1:] == known[:-1]
        seen += known
    assert len(actual.inputs) > data.n_users
    examples = data.examples("train")
    assert sorted(seen) == sorted(examples.targets.tolist())


@pytest.mark.parametrize("loss", ["ce", "list", "rank", "list+rank"])
def test_losses_by_definition(loss):
    model, (ranges, taught) = model_of("sasrec"), LABELLED
    windows = ranges.take(np.arange(2))
    settings = BaselineConfig(loss=loss, gamma=0.5, temperature=2.0, margin=0.1)
    log_probs = (model(torch.from_numpy(windows.inputs)) @ model.items.weight.T).log_softmax(-1)
    places = [(0, 0, 0), (0, 1, None), (0, 2, 1), (1, 0, 2)]
    expected = -sum(log_probs[user, place, windows.targets[user, place]] for user, place, _ in places) / 4
    lessons = []
    for user, place, label in places:
        if label is None:
            continue
        keep = taught.items[label] != PAD
        chosen = log_probs[user, place, taught.items[label][keep]]
        if "list" in loss:
            weights = torch.from_numpy(taught.scores[label][keep] / 2.0).softmax(0)
            lessons.append(-(weights * chosen).sum())
        if "rank" in loss:
            lessons.append(losses.rank(chosen, 0.1))
    expected = expected + (0.5 * sum(lessons) / 3 if lessons else 0)
    torch.testing.assert_close(summed_loss(model, settings, ranges, taught)[0], expected)


LABELLED = (
    windows_of([[3, 1, 4, 2], [5, 6]], 4, [[PAD, 0, PAD, 1], [PAD, 2]]),
    Candidates(
        np.array([[1, 7, 8], [2, 9, PAD], [6, 0, 3]]),
        np.array([[-2.0, -1.0, -3.0], [-1.0, -2.0, -np.inf], [-0.5, -2.0, -2.5]], dtype=np.float32),
    ),
)


def summed_loss(model, settings, windows, taught, processes=1, accumulation=1, rows=2):
    """Loss of all `rows` windows in one global batch, summed over processes and steps, and its gradient."""
    model.zero_grad()
    total = 0.0
    settings = replace(settings, batch_size=rows // processes // accumulation, accumulation=accumulation)
    candidates = None if settings.loss == "ce" else taught
    for process in range(processes):
        sampler = ItemBatchSampler(windows, candidates, settings, process, processes)
        for batch in sampler.batches(0):
            part = item_loss(model, settings.loss, batch, torch.device("cpu"), settings)
            part.backward()
            total = total + part.detach()
    return total, {name: value.grad.clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("loss", ["ce", "list+rank"])
@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (1, 2), (2, 2)])
def test_loss_does_not_depend_on_the_split(loss, processes, accumulation):
    """Means over the global batch, though the parts have unequal numbers of targets and of labels."""
    windows, taught = LABELLED
    settings, model = BaselineConfig(loss=loss, margin=0.1), model_of("sasrec")
    starts, lengths = (np.concatenate([values, values[::-1]]) for values in (windows.starts, windows.lengths))
    windows = replace(windows, starts=starts, lengths=lengths)
    whole, gradients = summed_loss(model, settings, windows, taught, rows=4)
    parts, others = summed_loss(model, settings, windows, taught, processes, accumulation, rows=4)
    torch.testing.assert_close(parts, whole)
    for name, value in gradients.items():
        torch.testing.assert_close(others[name], value, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A shop with a teacher's labels."""
    folder = tmp_path_factory.mktemp("taught")
    make_shop(folder, [3, 4, 5, 6, 9, 4, 7, 3, 8, 5])
    return folder


SMALL = {"dim": 8, "layers": 1, "epochs": 1, "batch_size": 16}


@pytest.mark.parametrize(
    ("variant", "loss"), [("tiger", "ce"), ("distill", "list"), ("dwr", "list+rank"), ("dwr-without-distill", "rank")]
)
def test_a_students_backbone(variant, loss, taught, tmp_path):
    """student/train.py --backbone sasrec makes what student/baseline.py makes, where evaluate.py looks for it."""
    same = {"run": taught, "margin": 0.1, "temperature": 2.0, **SMALL}
    config = Config(variant=variant, backbone="sasrec", **same)
    for name in ("dropout", "lr", "weight_decay", "valid_users", "patience"):
        same[name] = getattr(config, name)
    main(BaselineConfig(loss=loss, output=tmp_path / "other", **same))
    train.main(config)
    name = "sasrec" if loss == "ce" else f"sasrec-{loss}"
    ours = artifacts.read(taught / "baselines" / name, "baseline")
    other = artifacts.read(tmp_path / "other", "baseline")
    assert ours.fingerprint == other.fingerprint and ("soft_labels" in ours.inputs) == (loss != "ce")
    assert ours.manifest["identity"] == other.manifest["identity"]


def test_a_backbone_once_a_seed(taught, tmp_path, capsys):
    train.main(Config(run=taught, backbone="gru4rec", output=tmp_path / "gru", seeds=[0, 1], **SMALL))
    assert [ItemRecommender.from_pretrained(tmp_path / f"gru-seed{seed}").facts["seed"] for seed in (0, 1)] == [0, 1]
    assert "(seed 0)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["demo", "scientific", "instruments"])
def test_both_commands_read_the_settings(name):
    baseline, student = (parse(config, f"{name}/baseline.yaml", []) for config in (BaselineConfig, Config))
    for field in dataclasses.fields(baseline):
        if field.name not in ("network", "loss", "threads", "folds", "fold"):
            assert getattr(baseline, field.name) == getattr(student, field.name), field.name


def test_both_commands_have_the_same_defaults():
    """`--backbone sasrec` with no settings trains what `--network sasrec` with none does."""
    assert baseline_config(Config(backbone="sasrec")) == BaselineConfig()
    assert set(ITEM_BACKBONES) == set(ITEM_MODELS)


@pytest.mark.parametrize(("patience", "epochs"), [(0, 5), (2, 3)])
def test_patience(patience, epochs, taught, tmp_path, monkeypatch):
    """0 means never, as for all students."""
    values = iter([0.3, 0.2, 0.1, 0.4, 0.5])
    monkeypatch.setattr(PhaseTrainer, "validate", lambda _: next(values))
    changes = SMALL | {"epochs": 5, "patience": patience}
    train.main(Config(run=taught, backbone="sasrec", output=tmp_path / "sasrec", tracker="none", **changes))
    assert len(json.loads((tmp_path / "sasrec/curve.json").read_text())) == epochs


@pytest.mark.parametrize("network", NEXT_ITEM)
def test_goes_on_where_it_was_broken_off(network, taught, tmp_path, monkeypatch, capsys):
    """With dropout: the very same bytes."""

    settings = BaselineConfig(
        run=taught, network=network, loss="list", dim=8, epochs=3, batch_size=4, dropout=0.2, checkpoint_every=2
    )
    main(replace(settings, output=tmp_path / "whole", checkpoint_every=0))
    with monkeypatch.context() as patch:
        break_at(patch, 4)
        with pytest.raises(BrokenOffError):
            main(replace(settings, output=tmp_path / "broken"))
    assert not (tmp_path / "broken").exists()
    main(replace(settings, output=tmp_path / "broken"))
    assert f"{network} list: goes on from step 4 " in capsys.readouterr().err
    whole, broken = (artifacts.read(tmp_path / name, "baseline") for name in ("whole", "broken"))
    assert whole.fingerprint == broken.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "dtr"}, "--variant dtr is for backbones with semantic IDs"),
        ({"variant": "smooth"}, "gru4rec learns --variant tiger, distill, dwr, dwr-without-distill"),
        ({"labels": "rank"}, "--labels rank is for"),
        ({"dim": 7}, "--dim is 7; expected an even number"),
    ],
)
def test_what_a_backbone_cannot(changes, message, taught):
    with pytest.raises(UserError, match=message):
        train.main(Config(run=taught, backbone="gru4rec", **changes))
