"""The Hugging Face engine against plain full-sequence forward passes of a tiny random teacher."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from distill.data.dataset import PAD, Dataset, write_dataset
from distill.labels.labeller import LabelRequest
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs, write_codes
from distill.teachers.language_model import EngineLabeller
from teacher.base_model import extend_vocabulary, from_scratch
from teacher.config import Config, StreamSettings
from teacher.engines.hf import HFEngine
from teacher.lora import PROJECTIONS, add_lora
from teacher.model import adapt, count_parameters
from teacher.tasks import TaskData
from teacher.tokenizer import add_codewords, train_tokenizer

N_ITEMS, LEVELS, SIZE = 14, 3, 4
MAX_HISTORY, MAX_TOKENS = 4, 96
SIZES = {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3,
}  # fmt: skip
HISTORIES = np.array([[3, 1, 4, 1], [5, PAD, PAD, PAD], [9, 2, PAD, PAD], [6, 7, 8, PAD]])
FORMS = {"stream": (0, 0), "seqrec": (0, 0), "titles": (9, 0), "last titles": (9, 2)}  # titles' tokens, and items with
PROMPTS, STREAMS = tuple(FORMS), ("stream", "titles", "last titles")
NEWLINE = "\n"


@dataclass(frozen=True)
class Nothing:
    """No settings."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Users short and long: some prefixes fit the history of 4, some do not."""
    root, rng = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    sequences = [rng.integers(0, N_ITEMS, length) for length in (3, 9, 5, 4, 8, 6)]
    things = ["tent", "lamp", "rope", "kettle", "stove", "mat", "axe"]
    titles = [f"{colour} {thing}" for colour in ("red", "blue") for thing in things]
    names = [f"i{number}" for number in range(N_ITEMS)]
    with ArtifactJob("dataset", Nothing(), root / "dataset").write() as folder:
        items = pa.table({"item_id": names, "title": titles})
        write_dataset(folder, items, [f"u{number}" for number in range(len(sequences))], sequences)
    codes = np.random.default_rng(1).integers(0, SIZE, (N_ITEMS, LEVELS))
    codes[6] = codes[5]  # two items behind one ID
    with ArtifactJob("semantic_ids", Nothing(), root / "semantic_ids").write() as folder:
        write_codes(folder, names, codes)
        write_json(folder / "report.json", {"codebook_size": SIZE})
    return Dataset.load(root / "dataset"), SemanticIDs.load(root / "semantic_ids", N_ITEMS)


def new_teacher(shop):
    """A tiny random LLaMA, full-size in nothing but its parts."""
    data, ids = shop
    torch.manual_seed(0)
    tokenizer = train_tokenizer(data.texts(), 300)
    assert add_codewords(tokenizer, ids) == LEVELS * SIZE
    return from_scratch(tokenizer, SIZES, MAX_TOKENS).eval(), tokenizer


@pytest.fixture(scope="module")
def engines(shop):
    model, tokenizer = new_teacher(shop)
    data = {form: TaskData(*shop, tokenizer, MAX_HISTORY, MAX_TOKENS, stream=StreamSettings(*text))
            for form, text in FORMS.items()}  # fmt: skip
    return {form: HFEngine(model, data[form], "seqrec" if form == "seqrec" else "stream") for form in FORMS}


def prompt_of(engine, history):
    """The prompt's token numbers, made again from words."""
    tokenizer, ids = engine.data.tokenizer, engine.data.ids
    bought = [ids.text(item) for item in history if item != PAD]
    if engine.data.stream.stream_titles:
        titles, items = engine.data.questions.titles, [item for item in history if item != PAD]
        untitled = len(items) - (engine.data.stream.stream_title_items or len(items))
        text = "".join(f"{ids.text(i)}{f'{titles[i]}{NEWLINE}' * (n >= untitled)}" for n, i in enumerate(items))
    elif engine.prompt == "stream":
        text = "".join(bought)
    else:
        text = f"The user bought these items, oldest first: {', '.join(bought)}. What comes next? Answer: "
    return [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]


@torch.no_grad()
def plain(engine, history, item):
    """Log-probabilities of each level's codewords before the item's, by one plain forward pass [levels, size]."""
    ids, tokenizer = engine.data.ids, engine.data.tokenizer
    codewords = np.array(tokenizer.convert_tokens_to_ids(ids.tokens())).reshape(LEVELS, SIZE)
    prompt = prompt_of(engine, history)
    forced = [int(codewords[level, code]) for level, code in enumerate(ids.codes[item])]
    log_probs = engine.model(torch.tensor([prompt + forced])).logits[0].double().log_softmax(-1).numpy()
    return np.stack([log_probs[len(prompt) - 1 + level, codewords[level]] for level in range(LEVELS)])


def scores_of_all(engine, history):
    """log P(v|S) of every item, item by item."""
    codes = engine.data.ids.codes
    return np.array([plain(engine, history, item)[np.arange(LEVELS), codes[item]].sum() for item in range(N_ITEMS)])


def ranking(scores, left_out=()):
    """Items by score; those behind one ID (equal scores up to rounding) by number."""
    return [item for item in sorted(range(N_ITEMS), key=lambda i: (-round(scores[i], 9), i)) if item not in left_out]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_of_the_prompts(engines, prompt):
    engine = engines[prompt]
    tokens, lengths = engine.prompts(HISTORIES)
    assert len(set(lengths.tolist())) == 4  # unequal, so that padding is put to the test
    for row, history in enumerate(HISTORIES):
        assert tokens[row, : lengths[row]].tolist() == prompt_of(engine, history)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("exclude_bought", [True, False])
def test_wide_beams_rank_all_items(engines, prompt, exclude_bought):
    engine = engines[prompt]
    items, scores = engine.beams(HISTORIES, 50, exclude_bought)
    for row, history in enumerate(HISTORIES):
        expected = scores_of_all(engine, history)
        order = ranking(expected, set(history.tolist()) if exclude_bought else ())
        found = [item for item in items[row].tolist() if item >= 0]
        assert found == order
        np.testing.assert_allclose(scores[row, : len(found)], expected[order], atol=1e-4)
    assert np.ptp(scores_of_all(engine, HISTORIES[0])) > 0.1  # a ranking to speak of


@pytest.mark.parametrize("prompt", PROMPTS)
def test_narrow_beams_score_as_plain_passes(engines, prompt):
    """Beams of a tree are re-ordered and dropped on the way: what is left must have its own score."""
    engine = engines[prompt]
    for width in (1, 2, 3):
        items, scores = engine.beams(HISTORIES, width, exclude_bought=False)
        assert items.shape == (4, width) and (items >= 0).all()
        for row, history in enumerate(HISTORIES):
            expected = scores_of_all(engine, history)[items[row]]
            np.testing.assert_allclose(scores[row], expected, atol=1e-4)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_scores_of_candidates(engines, prompt):
    """In any order, more than once, padded: each scores as if it stood alone."""
    engine = engines[prompt]
    items = np.array([[5, 6, 0, 13, 0], [1, PAD, 2, PAD, PAD], [7, 7, 7, 7, 7], [PAD, 12, 11, 10, 9]])
    found = engine.score_candidates(HISTORIES, items)
    for row, history in enumerate(HISTORIES):
        expected = np.where(items[row] == PAD, -np.inf, scores_of_all(engine, history)[items[row]])
        np.testing.assert_allclose(found[row], expected, atol=1e-4)


def test_beams_without_the_trie(engines):
    engine = engines["stream"]
    items, scores = engine.beams(HISTORIES, SIZE**LEVELS, exclude_bought=False, constrained=False)
    codes = [tuple(row) for row in engine.data.ids.codes.tolist()]
    for row, history in enumerate(HISTORIES):
        expected = scores_of_all(engine, history)
        firsts = [codes.index(code) for code in dict.fromkeys(codes)]  # of items behind one ID, the first
        assert sorted(item for item in items[row].tolist() if item >= 0) == firsts
        for item, score in zip(items[row], scores[row], strict=True):
            if item >= 0:
                assert score == pytest.approx(expected[item], abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["stream", "seqrec"])
def test_beams_over_the_whole_vocabulary(engines, prompt):
    """Against plain passes over each prefix: the best of all extensions by any token are kept."""
    engine, width = engines[prompt], 7
    codewords = engine.data.tokenizer.convert_tokens_to_ids(engine.data.ids.tokens())
    item_of = {}
    for item, code in enumerate(engine.data.ids.codes.tolist()):  # of items behind one ID, the first
        item_of.setdefault(tuple(codewords[SIZE * level + number] for level, number in enumerate(code)), item)
    items = engine.search_whole_vocabulary(HISTORIES, width)
    for row, history in enumerate(HISTORIES):
        beams, start = [((), 0.0)], prompt_of(engine, history)
        for _ in range(LEVELS):
            longer = []
            for prefix, score in beams:
                log_probs = engine.model(torch.tensor([start + list(prefix)])).logits[0, -1].double().log_softmax(-1)
                longer += [((*prefix, token), score + value) for token, value in enumerate(log_probs.tolist())]
            beams = sorted(longer, key=lambda pair: -pair[1])[:width]
        assert items[row].tolist() == [item_of.get(tokens, PAD) for tokens, _ in beams]


def test_item_states(engines):
    """The last hidden states at the codewords, each item read behind the start token alone."""
    engine = engines["seqrec"]
    states = engine.item_states(batch_size=5)
    assert states.shape == (N_ITEMS, SIZES["hidden_size"])
    for item, tokens in enumerate(engine.data.item_tokens.tolist()):
        prompt = torch.tensor([[engine.data.tokenizer.bos_token_id, *tokens]])
        with torch.no_grad():
            hidden = engine.model(prompt, output_hidden_states=True).hidden_states[-1][0, 1:]
        np.testing.assert_allclose(states[item], hidden.mean(0), atol=1e-5)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_codeword_logprobs(engines, prompt):
    engine = engines[prompt]
    targets = np.array([0, 13, 5, 7])
    found = engine.codeword_logprobs(HISTORIES, targets)
    assert found.shape == (4, LEVELS, SIZE) and found.dtype == torch.float32
    for row, (history, target) in enumerate(zip(HISTORIES, targets, strict=True)):
        np.testing.assert_allclose(found[row], plain(engine, history, target), atol=1e-4)
    assert (found.exp().sum(-1) < 1).all()  # of the whole vocabulary


@pytest.mark.parametrize("prompt", STREAMS)
def test_a_stream_is_all_of_its_prefixes(engines, prompt):
    engine = engines[prompt]
    sequences = np.array([[3, 1, 4, 1, 5], [2, 6, PAD, PAD, PAD], [7, 8, 9, PAD, PAD]])
    found = engine.stream_logprobs(sequences)
    assert found.shape == (3, 5, LEVELS, SIZE)
    for row, sequence in enumerate(sequences):
        for place in range(int((sequence != PAD).sum())):
            prefix = np.full((1, max(place, 1)), PAD)
            prefix[0, :place] = sequence[:place]
            expected = engine.codeword_logprobs(prefix, sequence[place : place + 1])[0]
            np.testing.assert_allclose(found[row, place], expected, atol=1e-4)
            np.testing.assert_allclose(found[row, place], plain(engine, sequence[:place], sequence[place]), atol=1e-4)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("rows", [slice(None), slice(1, 7), slice(0, 1), slice(4, 6)])
def test_exported_distributions(shop, engines, prompt, rows):
    """Whatever goes through one pass a user and whatever prefix by prefix, and wherever a shard begins."""
    engine = engines[prompt]
    examples = shop[0].examples("train", MAX_HISTORY).take(rows)
    found = EngineLabeller(engine, shop[0], batch_size=3).distributions(examples)
    assert len(found) == len(examples) > 0
    for row in range(len(examples)):
        expected = plain(engine, examples.histories[row], examples.targets[row])
        np.testing.assert_allclose(found[row], expected, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("layers", [(-1,), (1,), (1, 2)])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_exported_states(shop, engines, prompt, layers):
    """Projected states of the layers before each codeword, by one pass a prompt, whichever way they were made.

    The embedded tokens are number 0 of `hidden_states`; the last is read after the model's last norm.
    """
    engine, ids = engines[prompt], shop[1]
    examples = shop[0].examples("train", MAX_HISTORY)
    states = EngineLabeller(engine, shop[0], batch_size=4).states(examples, 5, layers)
    assert states.shape == (len(examples), LEVELS, len(layers), 5)
    projection = np.random.default_rng(0).standard_normal((SIZES["hidden_size"], 5), dtype=np.float32)
    for row, (history, target) in enumerate(zip(examples.histories, examples.targets, strict=True)):
        tokens = prompt_of(engine, history) + engine.data.item_tokens[target][:-1].tolist()
        output = engine.model(input_ids=torch.tensor([tokens]), output_hidden_states=True)
        chosen = torch.stack([output.hidden_states[layer][0, -ids.levels :] for layer in layers], dim=1)
        expected = chosen.numpy() @ projection
        expected = expected / np.abs(expected).max(-1, keepdims=True)
        np.testing.assert_allclose((states[row].astype(float) - 128) / 127, expected, atol=0.5 / 127 + 1e-3)


@pytest.mark.parametrize("prompt", STREAMS)
def test_exported_labels(shop, engines, prompt):
    engine = engines[prompt]
    examples = shop[0].examples("train", MAX_HISTORY)
    assert (examples.positions > MAX_HISTORY).any() and (examples.positions <= MAX_HISTORY).any()
    labeller, told = EngineLabeller(engine, shop[0], batch_size=4), []
    labels = labeller.label(examples, LabelRequest(width=50, keep=5, exclude_bought=True), told.append)
    assert sum(told) == len(examples) and (labels.invalid == 0).all()
    for row in range(len(examples)):
        expected = scores_of_all(engine, examples.histories[row])
        target = int(examples.targets[row])
        order = ranking(expected, set(examples.histories[row].tolist()))
        assert labels.candidates[row].tolist() == [target, *(i for i in order if i != target)][:5]
        np.testing.assert_allclose(labels.scores[row], expected[labels.candidates[row]], atol=1e-4)
        assert labels.ranks[row] == (order.index(target) if target in order else -1)
    items = np.concatenate([labels.candidates, np.full((len(examples), 1), -1)], axis=1)
    scores = labeller.log_prob(examples, items)
    np.testing.assert_allclose(scores[:, :-1], labels.scores, atol=1e-4)
    assert (scores[:, -1] == -np.inf).all()


def test_unconstrained_labels(shop, engines):
    """All 64 codeword triples are beams: what is no item's is counted and dropped, the others keep their order."""
    engine = engines["stream"]
    examples = shop[0].examples("train", MAX_HISTORY).take(slice(0, 6))
    ask = LabelRequest(width=SIZE**LEVELS, keep=N_ITEMS, exclude_bought=True, constrained=False)
    labels = EngineLabeller(engine, shop[0]).label(examples, ask, lambda n: None)
    distinct = len(np.unique(shop[1].codes, axis=0))
    assert (labels.invalid == SIZE**LEVELS - distinct).all()
    for row in range(len(examples)):
        bought = set(examples.histories[row].tolist())
        # of two items behind one ID a beam names the first
        named = [i for i in range(N_ITEMS) if not (shop[1].codes[:i] == shop[1].codes[i]).all(1).any()]
        expected = scores_of_all(engine, examples.histories[row])
        target = int(examples.targets[row])
        rest = [i for i in ranking(expected, bought) if i != target and i in named]
        found = [item for item in labels.candidates[row].tolist() if item >= 0]
        assert found == [target, *rest]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_longer_than_the_window(engines, prompt, monkeypatch):
    engine = engines[prompt]
    longest = int(engine.prompts(HISTORIES)[1].max())
    monkeypatch.setattr(engine.model.config, "max_position_embeddings", longest + LEVELS - 1)
    engine.beams(HISTORIES, 3)
    monkeypatch.setattr(engine.model.config, "max_position_embeddings", longest + LEVELS - 2)
    for ask in (lambda: engine.beams(HISTORIES, 3), lambda: engine.codeword_logprobs(HISTORIES, np.arange(4))):
        with pytest.raises(UserError, match=f"of {longest} tokens and an ID do not fit"):
            ask()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_scope_all(shop, engines, prompt):
    """All levels' codewords at each position; each position's own ones are those of scope "level"."""
    engine = engines[prompt]
    examples = shop[0].examples("train", MAX_HISTORY)
    labeller = EngineLabeller(engine, shop[0], batch_size=4)
    wide, own = labeller.distributions(examples, "all"), labeller.distributions(examples)
    assert wide.shape == (len(examples), LEVELS, LEVELS * SIZE)
    assert (np.exp(wide).sum(-1) <= 1 + 1e-5).all()
    for level in range(LEVELS):
        np.testing.assert_allclose(wide[:, level, level * SIZE : (level + 1) * SIZE], own[:, level], atol=1e-5)
    tokenizer, history, target = engine.data.tokenizer, examples.histories[0], int(examples.targets[0])
    words = np.array(tokenizer.convert_tokens_to_ids(shop[1].tokens()))
    forced = words.reshape(LEVELS, SIZE)[np.arange(LEVELS), shop[1].codes[target]]
    asked = [*prompt_of(engine, history), *forced.tolist()]
    with torch.no_grad():
        plain_all = engine.model(torch.tensor([asked])).logits[0].log_softmax(-1)[-LEVELS - 1 : -1, words]
    np.testing.assert_allclose(wide[0], plain_all.numpy(), atol=1e-4)
    ask = LabelRequest(width=5, keep=3, scope="all")
    scores = labeller.label(examples, ask, lambda n: None).scores
    np.testing.assert_allclose(
        scores[:, 0], np.take_along_axis(own, shop[1].codes[examples.targets][..., None], 2)[..., 0].sum(1), atol=1e-4
    )


def step_once(model, tokens, lr=0.05):
    """One optimiser step on everything that may train."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr, weight_decay=0.1)  # decay would move frozen rows too
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_codewords_and_adapters_only(shop, tied):
    model, tokenizer = new_teacher(shop)
    if not tied:
        config = model.config
        config.tie_word_embeddings = False
        torch.manual_seed(1)
        model = type(model)(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    new_rows = tokenizer.convert_tokens_to_ids(shop[1].tokens())
    tuned = add_lora(model, new_rows, rank=2, alpha=8, dropout=0.0)
    names = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert names and all("lora_" in name or "trainable_tokens_delta" in name for name in names)
    for projection in PROJECTIONS:
        assert sum(f".{projection}.lora_A" in name for name in names) == SIZES["num_hidden_layers"]

    # words and codewords in one sequence: the old rows are used, and still have to stay
    text = "red tent " + "".join(shop[1].text(item) for item in range(N_ITEMS))
    tokens = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    tuned.train()
    for _ in range(2):  # the first step moves B off zero, the second moves A
        step_once(tuned, tokens)
    tuned.eval()
    with torch.no_grad():
        unmerged = tuned(input_ids=tokens).logits
    merged = tuned.merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=tokens).logits, unmerged, rtol=0, atol=1e-4)

    after = merged.state_dict()
    assert after.keys() == before.keys()
    old_rows = [row for row in range(len(tokenizer)) if row not in set(new_rows)]
    used = sorted({row for row in new_rows if row in tokens[0].tolist()})
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(after[name][old_rows], before[name][old_rows])
        assert (after[name][used] != before[name][used]).any(dim=1).all()
    assert torch.equal(after["model.embed_tokens.weight"], after["lm_head.weight"]) == tied
    for name in before:
        if any(f".{projection}." in name for projection in PROJECTIONS):
            assert not torch.equal(after[name], before[name]), name
        elif "embed" not in name and "lm_head" not in name:
            assert torch.equal(after[name], before[name]), name


@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_whole_tables(shop, tied):
    """All rows move, those of words too; tied tables stay one tensor, and no copy of a table is kept."""
    model, tokenizer = new_teacher(shop)
    config = model.config
    config.tie_word_embeddings = tied
    torch.manual_seed(1)
    model = type(model)(config)
    before, n_before = model.get_input_embeddings().weight.detach().clone(), count_parameters(model.parameters())
    tuned = add_lora(model, tokenizer.convert_tokens_to_ids(shop[1].tokens()), 2, 8, 0.0, "all")
    trained = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    adapters = {name for name in trained if "lora_" in name}
    prefix = "base_model.model."
    tables = {f"{prefix}model.embed_tokens.weight", *([] if tied else [f"{prefix}lm_head.weight"])}
    assert trained - adapters == tables
    n_adapters = sum(parameter.numel() for name, parameter in tuned.named_parameters() if name in adapters)
    assert count_parameters(tuned.parameters()) == n_before + n_adapters
    tokens = torch.arange(len(tokenizer))[None]
    tuned.train()
    for _ in range(2):
        step_once(tuned, tokens)
    with torch.no_grad():
        unmerged = tuned.eval()(input_ids=tokens).logits
        merged = tuned.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=tokens).logits, unmerged, rtol=0, atol=1e-4)
    table, head = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    moved = (table != before).any(dim=1)
    moved[tokenizer.pad_token_id] = True  # the padding's row has no gradient
    assert moved.all() and (table is head) == tied


def test_new_rows_start_near_the_mean(shop):
    _, tokenizer = new_teacher(shop)
    config = LlamaConfig(vocab_size=len(tokenizer) - LEVELS * SIZE, tie_word_embeddings=False, **SIZES)
    torch.manual_seed(0)
    base = LlamaForCausalLM(config)
    old = base.get_input_embeddings().weight.detach().clone()
    extend_vocabulary(base, tokenizer, LEVELS * SIZE)
    for table in (base.get_input_embeddings().weight, base.get_output_embeddings().weight):
        assert table.shape[0] == len(tokenizer)
    rows = base.get_input_embeddings().weight.detach()
    assert torch.equal(rows[: len(old)], old)
    distance = (rows[len(old) :] - old.mean(0)).norm(dim=1)
    assert (distance > 0).all() and (distance < 0.3 * (old - old.mean(0)).norm(dim=1).mean()).all()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_attention_dropout_reaches_the_layers(shop, dropout, mode):
    model, tokenizer = new_teacher(shop)
    config = Config(attention_dropout=dropout, mode=mode, lora_dropout=0.0)
    tuned = adapt(model, config, tokenizer.convert_tokens_to_ids(shop[1].tokens())).train()
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        first, second = (tuned(input_ids=tokens).logits for _ in range(2))
    assert torch.equal(first, second) == (dropout == 0)


def test_a_checkpoint_of_disk_gives_the_same_numbers(shop, engines, tmp_path):
    engine = engines["seqrec"]
    engine.model.save_pretrained(tmp_path)
    engine.data.tokenizer.save_pretrained(tmp_path)
    facts = {"prompt": "seqrec", "max_history": MAX_HISTORY, "max_tokens": MAX_TOKENS}
    write_json(tmp_path / "teacher.json", facts)
    loaded = HFEngine.load(tmp_path, *shop)
    targets = np.array([0, 13, 5, 7])
    expected = engine.codeword_logprobs(HISTORIES, targets)
    torch.testing.assert_close(loaded.codeword_logprobs(HISTORIES, targets), expected)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_long_histories_are_read_in_part_and_excluded_as_a_whole(engines, prompt):
    """The teacher reads the last MAX_HISTORY items; items before them are not recommended either."""
    engine = engines[prompt]
    long = np.array([[9, 2, 6, 3, 1, 4, 8], [5, 7, PAD, PAD, PAD, PAD, PAD]])
    short = np.array([[3, 1, 4, 8], [5, 7, PAD, PAD]])
    np.testing.assert_allclose(engine.score_items(long), engine.score_items(short), atol=1e-5)
    candidates = np.array([[0, 10, PAD], [3, 4, 11]])
    expected = engine.score_candidates(short, candidates)
    np.testing.assert_allclose(engine.score_candidates(long, candidates), expected, atol=1e-5)
    items, _ = engine.beams(long, N_ITEMS)
    scores = engine.score_items(short)
    for row, history in enumerate(long):
        assert items[row][items[row] != PAD].tolist() == ranking(scores[row], history)
