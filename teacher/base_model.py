"""The network before training: a base model or random weights, and the initial embedding rows of the codewords."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from distill.data.dataset import Dataset
from distill.runtime import models
from distill.runtime.config import suggest
from distill.runtime.errors import UserError
from distill.semantic_ids import quantisers
from distill.semantic_ids.ids import SemanticIDs


def from_scratch(tokenizer: PreTrainedTokenizerBase, sizes: dict[str, float], max_tokens: int) -> LlamaForCausalLM:
    """Build a small LLaMA with random weights; `sizes` are numeric fields of LlamaConfig.

    Raises:
        UserError: an unknown field, or sizes that do not fit together.
    """
    check_sizes(sizes)
    fields = {name: int(value) if float(value).is_integer() else value for name, value in sizes.items()}
    fields = {"tie_word_embeddings": True} | fields
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=max_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **fields,
    )
    return LlamaForCausalLM(config)


def check_sizes(sizes: dict[str, float]) -> None:
    """Refuse unknown fields, which would leave LLaMA-7B's sizes as they are, and sizes that do not fit together.

    Raises:
        UserError: as above.
    """
    known = LlamaConfig().to_dict()
    for name, value in sizes.items():
        if name not in known:
            raise UserError(f"Unknown field {name!r} in --sizes. {suggest(name, sorted(known))}")
        is_count = isinstance(known[name], int) and not isinstance(known[name], bool)
        if is_count and not name.endswith("_id") and (value < 1 or not float(value).is_integer()):
            raise UserError(f"--sizes: {name} is {value:g}; expected a whole number of at least 1.")
    width, heads = (int(sizes.get(name, known[name])) for name in ("hidden_size", "num_attention_heads"))
    keys, head = int(sizes.get("num_key_value_heads", heads)), int(sizes.get("head_dim", width // heads))
    if heads % keys or ("head_dim" not in sizes and width % heads) or head < 2 or head % 2:
        raise UserError(
            f"--sizes: hidden_size {width}, num_attention_heads {heads}, num_key_value_heads {keys}, head_dim {head}; "
            "expected a width that the heads divide into even parts, and as many heads as keys and values have or a "
            "multiple."
        )


def load_base(base: str, dtype: torch.dtype | str = torch.float32, **options) -> PreTrainedModel:
    """Load a pretrained causal model; `options` are those of `from_pretrained`.

    Raises:
        UserError: there is none at that path or name, or it is not loaded (`distill.runtime.models`).
    """
    return models.load_model(base, f"No base model at {base!r}", dtype=dtype, **options)


def unshard_token_tables(model: PreTrainedModel) -> None:
    """Give every process the whole embedding table and output head of a base that was loaded under ZeRO-3.

    Rows are added to them, and set, before ZeRO-3 cuts them like the rest. A base that is whole remains as it is.
    """
    table = model.get_input_embeddings()
    if hasattr(table.weight, "ds_id"):  # Transformers then makes whole tables of any size, this one too
        model.resize_token_embeddings(table.num_embeddings, mean_resizing=False)


def extend_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new: int) -> None:
    """Grow embeddings and output head to the tokenizer's size.

    The `new` last rows start at the mean of the old ones plus a tenth of their spread as noise.
    """
    if new == 0:
        return
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for weight in token_tables(model):
            old = weight[:-new]
            noise = torch.randn(new, weight.shape[1], dtype=weight.dtype, device=weight.device)
            weight[-new:] = old.mean(0) + 0.1 * old.std(0) * noise


def quantiser_vectors(ids: SemanticIDs) -> list[np.ndarray]:
    """The quantiser's code vectors of each level, float32 [codebook_size, d]; d may differ between levels.

    Raises:
        UserError: the IDs were imported or numbered, without a quantiser, or it has other sizes.
    """
    folder = ids.artifact.folder
    if not (folder / quantisers.SETTINGS).is_file():
        raise UserError(
            f"{folder} was imported or numbered: it has no quantiser to start from; run with --init_codewords mean."
        )
    quantiser = quantisers.load(folder)
    if (quantiser.levels, quantiser.codebook_size) != (ids.levels, ids.codebook_size):
        raise UserError(
            f"The quantiser of {folder} has {quantiser.levels} levels of {quantiser.codebook_size} codewords, the IDs "
            f"{ids.levels} of {ids.codebook_size}; run with --init_codewords mean."
        )
    return [np.asarray(quantiser.words(level), np.float32) for level in range(ids.levels)]


def init_from_codebook(model: PreTrainedModel, vectors: list[np.ndarray], seed: int) -> None:
    """Set the codewords' rows, the last ones, to the quantiser's vectors, so that similar codewords start similar.

    A random orthogonal map for each level takes its vectors into the embedding space, so that levels differ; they are
    scaled to the spread of the old rows around their mean.

    Args:
        model: its vocabulary ends with the codewords, level after level.
        vectors: from `quantiser_vectors`.
        seed: of the random maps.
    """
    tables = token_tables(model)
    width, new = tables[0].shape[1], sum(map(len, vectors))
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for level_vectors in vectors:
        centred = torch.from_numpy(level_vectors - level_vectors.mean(0))
        square = torch.randn(max(width, centred.shape[1]), min(width, centred.shape[1]), generator=generator)
        basis = torch.linalg.qr(square)[0]  # orthonormal columns
        projected = centred @ (basis.T if centred.shape[1] <= width else basis)
        rows.append(projected / projected.square().mean().sqrt().clamp(min=1e-12))
    rows = torch.cat(rows)
    with torch.no_grad():
        for weight in tables:
            old = weight[:-new]
            weight[-new:] = old.mean(0) + old.std(0) * rows.to(weight)


def item_texts(dataset: Dataset) -> list[str]:
    """The items' texts.

    Raises:
        UserError: no item has one.
    """
    texts = dataset.texts()
    if not any(texts):
        raise UserError(f"--init_codewords text: no item of {dataset.artifact.folder} has a text; take mean.")
    return texts


def init_from_text(
    model: PreTrainedModel, texts: list[str], ids: SemanticIDs, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Set the codewords' rows, the last ones, to the mean token embedding of the texts of the items that have them.

    Means of many embeddings are short and almost equal. So the rows of a level are taken relative to their mean and put
    around the mean of the old rows, scaled to the mean squared distance of the old rows from it. Their mean squared
    norm is then that of the old rows. Codewords of no item, or of items without texts only, keep their rows.

    Args:
        model: its vocabulary ends with the codewords, level after level.
        texts: of the items; empty where there is none.
        ids: the items' codes.
        tokenizer: its tokens below the codewords are the old rows.
    """
    with_text = np.array([item for item, text in enumerate(texts) if text])
    encoded = tokenizer([texts[item] for item in with_text], add_special_tokens=False)["input_ids"]
    lengths = torch.tensor([len(tokens) for tokens in encoded])
    flat, new = torch.tensor([token for tokens in encoded for token in tokens]), ids.levels * ids.codebook_size
    codes = torch.from_numpy(ids.codes[with_text].astype(np.int64))
    with torch.no_grad():
        for table in token_tables(model):
            old = table[:-new].float()
            item_rows = segment_means(table[flat].float(), torch.repeat_interleave(lengths), len(lengths))[0]
            for level in range(ids.levels):
                rows, used = segment_means(item_rows, codes[:, level], ids.codebook_size)
                spread = rows[used] - rows[used].mean(0)
                target = (old - old.mean(0)).square().sum(1).mean().sqrt()
                spread *= target / spread.square().sum(1).mean().sqrt().clamp(min=1e-12)
                first = len(table) - new + level * ids.codebook_size
                table[first + torch.nonzero(used)[:, 0]] = (old.mean(0) + spread).to(table)


def segment_means(rows: Tensor, segments: Tensor, n_segments: int) -> tuple[Tensor, Tensor]:
    """Mean of the rows of each segment [n_segments, width], and which segments have rows, bool [n_segments]."""
    counts = torch.bincount(segments, minlength=n_segments)
    sums = torch.zeros(n_segments, rows.shape[1]).index_add_(0, segments, rows)
    return sums / counts.clamp(min=1)[:, None], counts > 0


def token_tables(model: PreTrainedModel) -> list[Tensor]:
    """The embedding table and, where it is not the same tensor, the output head [vocabulary, width]."""
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    return list({id(table.weight): table.weight for table in tables}.values())
