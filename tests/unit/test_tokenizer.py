"""The teacher's tokenizer after it was saved with codewords and loaded again."""

import json

import pytest
from transformers import LlamaTokenizer

from teacher.tokenizer import load_tokenizer

VOCABULARY = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "b": 5, "▁a": 6, "ab": 7, "▁ab": 8}
MERGES = [("▁", "a"), ("a", "b"), ("▁a", "b")]


@pytest.mark.parametrize(("legacy", "expected"), [(True, [9, 8]), (False, [9, 7])])
def test_llamas_legacy_rule_is_saved(tmp_path, legacy, expected):
    """LLaMA's old rule puts a blank before a word behind a special token, the new one does not."""
    LlamaTokenizer(vocab=VOCABULARY, merges=MERGES, legacy=legacy).save_pretrained(tmp_path / "base")
    config = tmp_path / "base/tokenizer_config.json"  # as published bases have it
    config.write_text(json.dumps(json.loads(config.read_text()) | {"legacy": legacy}))
    tokenizer = load_tokenizer(str(tmp_path / "base"))
    tokenizer.add_tokens(["<a_1>"])
    tokenizer.save_pretrained(tmp_path / "teacher")
    for each in (tokenizer, load_tokenizer(str(tmp_path / "teacher"))):
        assert each("<a_1>ab", add_special_tokens=False)["input_ids"] == expected
