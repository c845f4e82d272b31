"""DreamRec: loss and reverse process against slow twins, guidance, deterministic lists, and settings that clash."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import dreamrec_naive
from student_shop import write_network
from unit.test_item_models import N_ITEMS, Nothing, root  # noqa: F401 - a fixture

from distill.data.dataset import Dataset
from distill.runtime import artifacts
from distill.runtime.errors import UserError
from student.baseline import main
from student.config import BaselineConfig, Config
from student.config_checks import baseline_config, check_baseline
from student.dreamrec_config import DreamRecSettings
from student.item_recommender import ItemRecommender
from student.models.item_models import ITEM_MODELS
from student.models.item_models.diffusion import Diffusion
from student.models.item_models.dreamrec import DreamRec, DreamRecConfig, sinusoids

STEPS, DIM = 5, 8


def model_of(seed=0, **sizes):
    torch.manual_seed(seed)
    return DreamRec(DreamRecConfig(N_ITEMS, max_history=4, dim=DIM, **({"steps": STEPS} | sizes))).eval()


def slow_denoiser(model):
    """The denoiser of one vector: its three inputs and its one layer, by hand."""

    def denoise(noisy, guide, t):
        half = DIM // 2
        angles = [t * 10_000 ** (-place / (half - 1)) for place in range(half)]
        step = torch.tensor([*np.sin(angles), *np.cos(angles)], dtype=torch.float32)
        rows = torch.from_numpy(noisy).float(), torch.as_tensor(guide).float(), model.step_network(step)
        return (model.denoiser.weight @ torch.cat(rows) + model.denoiser.bias).detach().numpy().astype(float)

    return denoise


def test_the_schedule_keeps_the_variance():
    diffusion, betas = Diffusion(STEPS, DIM), dreamrec_naive.schedule(STEPS)
    kept = [dreamrec_naive.kept(betas, t) for t in range(STEPS)]
    np.testing.assert_allclose(diffusion.signal**2, kept, rtol=1e-5)
    np.testing.assert_allclose(diffusion.signal**2 + diffusion.noise**2, np.ones(STEPS), rtol=1e-5)
    assert diffusion.deviation[0] == 0 and diffusion.from_noisy[0] == 0
    assert diffusion.from_clean[0] == pytest.approx(1, rel=1e-5)  # the last step returns the prediction
    assert Diffusion(500, 1).signal[-1] ** 2 < 0.01  # hardly anything is left of the item


def test_one_step_adds_noise_by_hand():
    diffusion = Diffusion(2, 1)
    share = dreamrec_naive.kept(dreamrec_naive.schedule(2), 1)
    noisy = diffusion.diffuse(torch.tensor([[3.0]]), torch.tensor([1]), torch.tensor([[-2.0]]))
    assert noisy.item() == pytest.approx(3 * share**0.5 - 2 * (1 - share) ** 0.5, rel=1e-5)


@torch.no_grad()
def test_the_loss_is_the_slow_twins():
    model, betas = model_of(), dreamrec_naive.schedule(STEPS)
    guides, noise = torch.randn(4, DIM), torch.randn(4, DIM)
    targets, steps = torch.tensor([3, 0, 11, 3]), torch.tensor([0, 4, 2, 1])
    is_unguided = torch.tensor([False, True, False, True])
    actual = model.errors(guides, targets, steps, noise, is_unguided)
    for row in range(4):
        guide = model.no_history if is_unguided[row] else guides[row]
        clean = model.items.weight[targets[row]].numpy()
        expected = dreamrec_naive.squared_error(
            slow_denoiser(model), clean, guide, int(steps[row]), noise[row].numpy(), betas
        )
        assert actual[row].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("guidance", [0.0, 2.0])
@torch.no_grad()
def test_the_reverse_process_is_the_slow_twins(guidance):
    model, betas = model_of(guidance=guidance), dreamrec_naive.schedule(STEPS)
    guides, draws = torch.randn(3, DIM), model.diffusion.draws.numpy()
    actual = model.generate(guides).numpy()
    for row in range(3):
        arguments = guides[row], model.no_history, guidance, betas, draws
        np.testing.assert_allclose(
            actual[row], dreamrec_naive.generate(slow_denoiser(model), *arguments), rtol=1e-3, atol=1e-4
        )


@torch.no_grad()
def test_a_denoiser_that_knows_the_item_generates_it():
    diffusion, item = Diffusion(STEPS, DIM), torch.randn(DIM)
    generated = diffusion.generate(lambda vectors, step: item.expand_as(vectors), 2)
    torch.testing.assert_close(generated, item.expand(2, -1), rtol=1e-4, atol=1e-5)


def test_sinusoids_by_hand():
    values = sinusoids(torch.tensor([0, 3]), 4)
    np.testing.assert_allclose(values[0], [0, 0, 1, 1])
    np.testing.assert_allclose(values[1], [np.sin(3), np.sin(3e-4), np.cos(3), np.cos(3e-4)], rtol=1e-5)


@torch.no_grad()
def test_the_share_of_unguided_examples():
    model = model_of(unguided=1.0)
    torch.manual_seed(0)
    histories, places, targets = torch.tensor([[1], [2]]), torch.ones(2, 1, dtype=torch.bool), torch.tensor([5, 5])
    torch.manual_seed(0)
    errors = model(histories, places, targets)
    torch.manual_seed(0)
    torch.testing.assert_close(model(torch.tensor([[7], [9]]), places, targets), errors)  # no history is read
    torch.manual_seed(0)
    guided = model_of(unguided=0.0)
    torch.manual_seed(0)
    assert (guided(histories, places, targets) - errors).abs().max() > 1e-4


@torch.no_grad()
def test_lists_are_those_of_each_history_alone_and_the_same_again(tmp_path):
    recommender = ItemRecommender(model_of(), {"network": "dreamrec"})
    histories = np.array([[3, 1, 4, 7, 2, 5], [3, 1, -1, -1, -1, -1], [8, -1, -1, -1, -1, -1]])
    actual = recommender.score_items(histories)
    np.testing.assert_allclose(np.exp(actual).sum(1), 1, rtol=1e-5)
    for row, history in enumerate(([4, 7, 2, 5], [3, 1], [8])):  # the last four items have a place
        model = recommender.model
        generated = model.generate(model(torch.tensor([history]))[0, -1:])[0]
        expected = (model.items.weight @ generated).log_softmax(0)
        np.testing.assert_allclose(actual[row], expected, rtol=1e-3, atol=1e-3)
    recommender.save_pretrained(tmp_path)
    np.testing.assert_array_equal(ItemRecommender.from_pretrained(tmp_path).score_items(histories), actual)


@torch.no_grad()
def test_an_encoding_depends_only_on_earlier_items():
    model = model_of()
    encoded = model(torch.tensor([[3, 1, 4, 7], [3, 1, 9, -1]]))
    torch.testing.assert_close(encoded[0, :2], encoded[1, :2])
    assert (encoded[0, 2] - encoded[1, 2]).abs().max() > 1e-3


def test_learns(root, tmp_path):  # noqa: F811
    """Everybody walks round the circle: the generated item is the next one, not the most popular."""
    config = BaselineConfig(
        run=root, network="dreamrec", output=tmp_path / "dreamrec", dim=16, dropout=0.0, epochs=30, batch_size=16,
        lr=2e-2, weight_decay=0.0, patience=0, dreamrec=DreamRecSettings(steps=10),
    )  # fmt: skip
    main(config)
    recommender = ItemRecommender.from_pretrained(tmp_path / "dreamrec")
    examples = Dataset.load(root / "dataset").examples("test")
    assert (recommender.rank_items(examples.histories, 1)[0][:, 0] == examples.targets).mean() > 0.7, (
        recommender.rank_items(examples.histories, 1)[0][:, 0] == examples.targets
    ).mean()  # chance: 1 / 12


def test_trains_the_same_again(root, tmp_path):  # noqa: F811
    settings = DreamRecSettings(steps=3)
    config = BaselineConfig(run=root, network="dreamrec", dim=8, epochs=1, batch_size=32, dreamrec=settings)
    for output in ("one", "two"):
        main(replace(config, output=tmp_path / output))
    one, two = (artifacts.read(tmp_path / output, "baseline") for output in ("one", "two"))
    assert one.fingerprint == two.fingerprint


def test_embeddings_of_a_trained_network_are_standardised_and_stay(root, tmp_path):  # noqa: F811
    network, sizes = ITEM_MODELS["sasrec"]
    torch.manual_seed(3)
    sasrec = network(sizes(N_ITEMS, dim=DIM))
    write_network(tmp_path / "sasrec", sasrec, root / "dataset")
    config = BaselineConfig(
        run=root, network="dreamrec", output=tmp_path / "dreamrec", sasrec=tmp_path / "sasrec", dim=DIM, epochs=2,
        batch_size=16, lr=1e-2, dreamrec=DreamRecSettings(steps=3),
    )  # fmt: skip
    main(config)
    rows = sasrec.items.weight.detach().numpy()
    centred = rows - rows.mean(0)
    expected = centred / np.sqrt((centred**2).mean())  # one scale for all dimensions: inner products keep their order
    trained = ItemRecommender.from_pretrained(tmp_path / "dreamrec").model
    np.testing.assert_allclose(trained.items.weight.detach(), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"has embeddings of 8 dimensions; give --dim 8, found 16"):
        main(replace(config, dim=16, overwrite=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "dreamrec", "loss": "list"}, "--loss list compares items; dreamrec has a loss of its own"),
        ({"network": "dreamrec", "item_text": "add"}, "--item_text add is for the other networks"),
        ({"network": "gru4rec", "sasrec": Path("x")}, "--sasrec is for setrec, e4srec, dreamrec; the network is"),
        ({"network": "sasrec", "dreamrec": DreamRecSettings(steps=9)}, "--dreamrec is for dreamrec; the network is"),
    ],
)
def test_settings_that_clash(changes, message):
    with pytest.raises(UserError, match=message):
        check_baseline(BaselineConfig(**changes))


def test_the_variant_of_a_teacher_is_refused():
    config = baseline_config(Config(backbone="dreamrec", variant="dwr"))
    with pytest.raises(UserError, match=r"--loss list\+rank compares items"):
        check_baseline(config)
