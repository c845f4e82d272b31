"""merge.py: an adapter and its base become the checkpoint that finetune.py itself would have merged."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from test_finetune import ENVIRONMENT, ROOT, make_run, settings
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from distill.data.dataset import Dataset
from distill.runtime import artifacts
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs
from teacher import finetune, merge
from teacher.engines.hf import HFEngine
from teacher.lora import PROJECTIONS
from teacher.tokenizer import train_tokenizer

SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
KINDS = {"llama": False, "qwen2": True, "mistral": False}  # architecture -> tied embeddings


def make_base(root, folder, kind, rows=400, **changes):
    """A random base model; its table has more rows than the tokenizer has tokens, as Qwen's has."""
    tokenizer = train_tokenizer(Dataset.load(root / "dataset").texts(), 300)
    if kind == "qwen2":
        tokenizer.bos_token = None
    config = AutoConfig.for_model(
        kind, **(SIZES | changes), vocab_size=rows, tie_word_embeddings=KINDS[kind], initializer_range=0.2
    )
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """(run, (kind, mode, embeddings) -> teacher tuned with LoRA or QLoRA); tuned when first asked for."""
    root = tmp_path_factory.mktemp("run")
    make_run(root)

    def get(kind, mode="lora", embeddings="codewords"):
        output, base = root / f"{kind}-{mode}-{embeddings}", root / f"base-{kind}"
        if not output.exists():
            if not base.exists():
                make_base(root, base, kind)
            more = {"precision": "no", "epochs": 1, "lr": 0.02, "lora_embeddings": embeddings}
            finetune.main(settings(root, base=str(base), mode=mode, output=output, **more))
        return output

    return root, get


def logits(model, tokens):
    with torch.no_grad():
        return model.eval()(input_ids=tokens).logits


TEACHERS = [*((kind, "lora") for kind in KINDS), ("llama", "qlora"), ("qwen2", "qlora")]
WHOLE = [(kind, mode, "all") for kind in ("llama", "qwen2") for mode in ("lora", "qlora")]  # untied and tied tables


@pytest.mark.parametrize(("kind", "mode", "embeddings"), [*((*pair, "codewords") for pair in TEACHERS), *WHOLE])
def test_logits_of_the_unmerged_model(tuned, tmp_path, kind, mode, embeddings):
    """A QLoRA's adapter goes into the base itself, not its 4-bit image."""
    root, get = tuned
    teacher, base = get(kind, mode, embeddings), root / f"base-{kind}"
    merge.main(merge.Config(teacher / "adapter", str(base), tmp_path / "merged"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.config.vocab_size == len(tokenizer) == merged.get_input_embeddings().num_embeddings

    unmerged = AutoModelForCausalLM.from_pretrained(base)
    unmerged.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    unmerged = PeftModel.from_pretrained(unmerged, teacher / "adapter")
    ids = SemanticIDs.load(root / "semantic_ids")
    tokens = torch.tensor([tokenizer("a tent " + "".join(map(ids.text, range(20))))["input_ids"]])
    found = logits(merged, tokens)
    torch.testing.assert_close(found, logits(unmerged, tokens), rtol=0, atol=1e-4)
    torch.testing.assert_close(found, logits(AutoModelForCausalLM.from_pretrained(teacher), tokens), rtol=0, atol=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert merged.dtype == plain.dtype == torch.float32
    words = tokens[:, :2]
    assert (found[:, :2, :300] - logits(plain, words)[:, :, :300]).abs().max() > 0.01  # the adapter does something

    for name in ("teacher.json", "tokenizer.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (teacher / name).read_bytes()
    first, second = artifacts.read(tmp_path / "merged", "teacher"), artifacts.read(teacher, "teacher")
    assert first.inputs == second.inputs  # so that labels of another codebook are still refused
    HFEngine.load(tmp_path / "merged", Dataset.load(root / "dataset"), ids)


@pytest.mark.parametrize("mode", ["lora", "qlora"])
def test_a_base_that_has_the_codewords(tuned, tmp_path, mode):
    """A teacher tuned further is merged like any other."""
    root, get = tuned
    base, output = get("llama"), tmp_path / "teacher"
    finetune.main(settings(root, base=str(base), mode=mode, precision="no", epochs=1, lr=0.05, output=output))
    merge.main(merge.Config(output / "adapter", str(base), tmp_path / "merged"))
    tokens = torch.randint(3, 320, (2, 20))
    found, saved, old = (
        logits(AutoModelForCausalLM.from_pretrained(path), tokens) for path in (tmp_path / "merged", output, base)
    )
    torch.testing.assert_close(found, saved, rtol=0, atol=1e-4)
    assert (found - old).abs().max() > 0.01


@pytest.mark.parametrize(("kind", "mode"), TEACHERS)
def test_only_adapters_and_codeword_rows_are_in_the_file(tuned, kind, mode):
    _, get = tuned
    with safe_open(get(kind, mode) / "adapter/adapter_model.safetensors", "pt") as file:
        names = set(file.keys())
        rows = [name for name in names if "lora_" not in name]
        assert len(names) - len(rows) == 2 * 2 * len(PROJECTIONS)
        assert len(rows) == (1 if KINDS[kind] else 2) and all("trainable_tokens_delta" in name for name in rows)
        assert all(file.get_tensor(name).shape == (3 * 8, 16) for name in rows)


def test_an_adapter_has_the_same_bytes_in_every_process(tuned):
    """Names stand in alphabetical order, not in that of a set, which changes with the process's hash seed."""
    config = json.loads((tuned[1]("llama", "lora") / "adapter/adapter_config.json").read_text())
    assert config["target_modules"] == sorted(PROJECTIONS)


@pytest.mark.parametrize(("kind", "mode", "embeddings"), WHOLE)
def test_whole_tables_train_and_are_in_the_file(tuned, kind, mode, embeddings):
    """Rows of words too, in the adapter as in the merged teacher; tied tables stay one."""
    root, get = tuned
    teacher = get(kind, mode, embeddings)
    saved, merged = load_file(teacher / "adapter/adapter_model.safetensors"), load_file(teacher / "model.safetensors")
    base = load_file(root / f"base-{kind}/model.safetensors")
    tables = {name: saved[name] for name in saved if "lora_" not in name}
    assert set(tables) == {"base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"}
    for name, table in tables.items():
        name = name.removeprefix("base_model.model.")
        name = "model.embed_tokens.weight" if KINDS[kind] else name
        assert torch.equal(table, merged[name])
        assert (table[:300] - base[name][:300]).abs().max() > 0.01
    assert ("lm_head.weight" in merged) != KINDS[kind]


def test_by_its_command_in_another_precision(tuned, tmp_path):
    root, get = tuned
    shutil.copytree(get("llama") / "adapter", tmp_path / "travelled")  # alone, without the teacher around it
    words = ["--adapter", tmp_path / "travelled", "--base", root / "base-llama", "--output", tmp_path / "merged"]
    done = subprocess.run(
        [sys.executable, ROOT / "teacher/merge.py", *words, "--dtype", "bfloat16"],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


class TestBadInput:
    """One clear message, nothing written."""

    def refused(self, tmp_path, said, adapter, base):
        with pytest.raises(UserError, match=said):
            merge.main(merge.Config(Path(adapter), str(base), tmp_path / "merged"))
        assert not (tmp_path / "merged").exists() and not (tmp_path / "merged.partial").exists()

    def test_no_adapter(self, tuned, tmp_path):
        root, get = tuned
        teacher = get("llama")
        self.refused(tmp_path, f"is not an adapter.* Give {teacher}/adapter", teacher, root / "base-llama")
        self.refused(tmp_path, "is not an adapter.* --mode lora", root / "base-llama", root / "base-llama")

    def test_an_adapter_without_tokenizer(self, tuned, tmp_path):
        root, get = tuned
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(get("llama") / "adapter" / name, tmp_path)
        (tmp_path / "a").mkdir()
        (tmp_path / "adapter_config.json").rename(tmp_path / "a/adapter_config.json")
        self.refused(tmp_path, "holds the tokenizer", tmp_path / "a", root / "base-llama")

    def test_output_exists(self, tuned, tmp_path):
        root, get = tuned
        (tmp_path / "merged").mkdir()
        with pytest.raises(UserError, match="exists; name another output"):
            merge.main(merge.Config(get("llama") / "adapter", str(root / "base-llama"), tmp_path / "merged"))
        assert not list((tmp_path / "merged").iterdir())

    def test_another_vocabulary(self, tuned, tmp_path):
        root, get = tuned
        shutil.copytree(root / "base-llama", tmp_path / "base")
        train_tokenizer(["some other words"] * 9, 290).save_pretrained(tmp_path / "base")
        said = "another vocabulary than the adapter's base: expected 300 tokens, got"
        self.refused(tmp_path, said, get("llama") / "adapter", tmp_path / "base")

    def test_other_sizes(self, tuned, tmp_path):
        root, get = tuned
        make_base(root, tmp_path / "wide", "llama", hidden_size=32)
        self.refused(tmp_path, "does not fit", get("llama") / "adapter", tmp_path / "wide")
        make_base(root, tmp_path / "deep", "llama", num_hidden_layers=3)
        self.refused(tmp_path, "tensors are in one of the two only", get("llama") / "adapter", tmp_path / "deep")

    def test_a_damaged_adapter(self, tuned, tmp_path):
        root, get = tuned
        shutil.copytree(get("llama") / "adapter", tmp_path / "adapter")
        file, config = (tmp_path / "adapter" / name for name in ("adapter_model.safetensors", "adapter_config.json"))
        whole, rows = file.read_bytes(), config.read_text()
        file.write_bytes(whole[:-50])
        self.refused(tmp_path, "does not fit", tmp_path / "adapter", root / "base-llama")
        config.write_text(json.dumps(json.loads(rows) | {"trainable_token_indices": None}))
        self.refused(tmp_path, "cannot be read", tmp_path / "adapter", root / "base-llama")
        file.write_bytes(whole)
        self.refused(tmp_path, "trains no codeword rows", tmp_path / "adapter", root / "base-llama")

    def test_no_base(self, tuned, tmp_path):
        _, get = tuned
        self.refused(tmp_path, "No tokenizer at", get("llama") / "adapter", tmp_path)
