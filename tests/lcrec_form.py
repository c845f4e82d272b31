"""A small random LLaMA in the form in which LC-Rec publishes its checkpoints, with a data set and an index."""

import io
import json
import random
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import sentencepiece
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from distill.data.dataset import write_dataset
from distill.runtime.artifacts import ArtifactJob, read, write_json
from distill.semantic_ids.ids import token, write_codes
from teacher import import_lcrec

LEVELS, SIZE, N_ITEMS = 3, 12, 16
USED = ((1, 2, 5, 7, 10), (0, 3, 4), (2, 6, 8, 11))  # codewords of some item; the others are in no vocabulary
GAPS = np.array([[code not in used for code in range(SIZE)] for used in USED])
PROMPT = "Below is a task.\n\n### Instruction:\nThe user has bought {history}. What  is next?\n\n### Response:"
SIZES = {  # vLLM has attention on CPUs for heads of 32
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "initializer_range": 0.3, "max_position_embeddings": 256,
}  # fmt: skip


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def item_codes():
    """Distinct codes of all items; every used codeword is some item's."""
    every = np.array([[a, b, c] for c in USED[2] for b in USED[1] for a in USED[0]])
    chosen = np.linspace(0, len(every) - 1, N_ITEMS).astype(int)
    codes = every[chosen]
    assert all(set(codes[:, level]) == set(USED[level]) for level in range(LEVELS))
    return codes


def make_run(root, users=12):
    """Write RUN/dataset and RUN/semantic_ids; returns the folder."""
    rng = np.random.default_rng(0)
    names = [f"i{number}" for number in range(N_ITEMS)]
    rows = [rng.permutation(N_ITEMS)[: rng.integers(4, 9)] for _ in range(users)]
    with ArtifactJob("dataset", Nothing(), root / "dataset").write() as folder:
        items = pa.table({"item_id": names, "title": [f"thing {name}" for name in names]})
        write_dataset(folder, items, [f"u{user}" for user in range(users)], rows)
    data = read(root / "dataset", "dataset")
    with ArtifactJob("semantic_ids", Nothing(), root / "semantic_ids", [data]).write() as folder:
        write_codes(folder, names, item_codes())
        write_json(folder / "report.json", {"codebook_size": SIZE})
    return root


def added_tokens(first):
    """Number of each used codeword, in LC-Rec's order: as text."""
    words = sorted(token(level, code) for level in range(LEVELS) for code in USED[level])
    return {word: first + number for number, word in enumerate(words)}


def train_sentencepiece():
    """LLaMA's kind of tokenizer: BPE with bytes for what it does not know."""
    words = PROMPT.replace("{history}", "red blue tent lamp").split()
    rng, model = random.Random(0), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(" ".join(rng.choices(words, k=12)) for _ in range(300)),
        model_writer=model, model_type="bpe", vocab_size=340, byte_fallback=True, hard_vocab_limit=False,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def write_tokenizer(folder, model, added):
    """The files that transformers before 4.34 wrote for a slow tokenizer."""
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "added_tokens.json").write_text(json.dumps(added))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {name: {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": True, "rstrip": False,
                       "single_word": False} for name, text in special.items()}  # fmt: skip
    settings |= {"add_bos_token": True, "add_eos_token": False, "model_max_length": 2048, "pad_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "LlamaTokenizer"}))
    (folder / "special_tokens_map.json").write_text(json.dumps(special | {"pad_token": "<unk>"}))


def write_checkpoint(folder):
    """The whole model, its base without codewords (folder-base), and the difference (folder-delta).

    Returns:
        The sentencepiece processor, and the numbers of the codewords.
    """
    model = train_sentencepiece()
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    words = processor.get_piece_size()
    added = added_tokens(words)
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=words, **SIZES)).half()
    whole = LlamaForCausalLM(LlamaConfig(vocab_size=words + len(added), **SIZES)).half()
    delta = LlamaForCausalLM(whole.config).half()
    old, new = base.state_dict(), whole.state_dict()
    delta.load_state_dict({key: new[key] - old[key] if new[key].shape == old[key].shape else new[key] for key in new})
    for network, name in ((whole, folder.name), (base, f"{folder.name}-base"), (delta, f"{folder.name}-delta")):
        network.save_pretrained(folder.with_name(name))
        write_tokenizer(folder.with_name(name), model, {} if network is base else added)
    return processor, added


def import_checkpoint(root):
    """Write and import a checkpoint for the run at `root`; returns the teacher's folder."""
    write_checkpoint(root / "checkpoint")
    (root / "prompt.txt").write_text(PROMPT + "\n")
    import_lcrec.main(import_lcrec.Config(checkpoint=root / "checkpoint", prompt=root / "prompt.txt", run=root))
    return root / "teacher"
