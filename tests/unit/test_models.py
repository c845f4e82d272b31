"""Models of untrusted folders: no code of theirs is run, nothing is asked, and no pickle file is read."""

import json
import sys
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoConfig

from distill.runtime import models
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.errors import UserError
from distill.semantic_ids.embedders import check_modules
from student.models.large import loading
from teacher.base_model import load_base
from teacher.estimate import load_config
from teacher.tokenizer import load_tokenizer
from tests.tiny_llms import NETWORKS, checkpoint

CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "evil"
class Network(LlamaForCausalLM):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


@dataclass(frozen=True)
class Nothing:
    """No settings."""


class NoPrompt:
    def readline(self, *_):
        raise AssertionError("a question was asked")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A LLaMA whose folder also holds Python code that every Auto class would run."""
    monkeypatch.setattr(sys, "stdin", NoPrompt())
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    path = checkpoint(tmp_path / "base", NETWORKS["llama"], [])
    (path / "evil.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    for name, auto_map in (
        ("config.json", {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Network"}),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "evil.Tokenizer"]}),
    ):
        content = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps(content | {"auto_map": auto_map}))
    yield path
    assert not (tmp_path / "ran").exists()


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_code_beside_a_known_network_is_ignored(folder):
    network = load_base(str(folder))
    assert type(network).__module__ == "transformers.models.llama.modeling_llama"
    assert type(models.load_model(folder, "", "any")).__name__ == "LlamaModel"
    assert type(models.build_causal_model(load_config(folder))).__name__ == "LlamaForCausalLM"
    assert load_tokenizer(str(folder)).convert_tokens_to_ids("words") == 3
    loading.read_checkpoint(folder, torch.float32)


def test_a_network_that_needs_code_is_refused(folder):
    change(folder / "config.json", model_type="evil")
    for load in (load_base, load_config):
        with pytest.raises(UserError, match=r"auto_map\), and none is run"):
            load(str(folder))


def test_a_student_keeps_no_code_of_its_base(folder):
    settings = AutoConfig.for_model(**json.loads((folder / "config.json").read_text()))
    assert settings.auto_map  # as in a student's config.json
    assert type(models.build_causal_model(settings)).__name__ == "LlamaForCausalLM"


def test_pickle_files_are_refused(folder):
    state = load_base(str(folder)).state_dict()
    torch.save(state, folder / "pytorch_model.bin")
    load_base(str(folder))  # not read, as there are safetensors
    (folder / "model.safetensors").unlink()
    for load in (load_base, lambda path: loading.read_checkpoint(path, torch.float32)):
        with pytest.raises(UserError, match=r"in pytorch_model\.bin; only safetensors is read.* convert it: python"):
            load(str(folder))


def test_an_index_of_safetensors_may_not_name_pickle_files(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}}))
    with pytest.raises(UserError, match=r"names pytorch_model\.bin; only safetensors"):
        load_base(str(folder))
    index.write_text("[]")
    with pytest.raises(UserError, match="cannot be read"):
        load_base(str(folder))


def test_damaged_weights_are_no_traceback(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="No base model at"):
        load_base(str(folder))


@pytest.mark.parametrize(
    ("modules", "activation", "message"),
    [
        ([{"path": "", "type": "subprocess.Popen"}], None, "names subprocess.Popen"),
        ([{"path": "d", "type": "sentence_transformers.models.Dense"}], "os.abort", "names os.abort"),
        ([{"path": "d", "type": "sentence_transformers.models.Dense"}], 3, "cannot be read"),
        ([{"path": "d", "type": "sentence_transformers.models.Dense"}], "torch.nn.Tanh", "weights are in pytorch_mod"),
        ({"a": 1}, None, "cannot be read"),
    ],
)
def test_sentence_transformers_takes_only_its_modules(tmp_path, modules, activation, message):
    (tmp_path / "d").mkdir()
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "d/config.json").write_text(json.dumps({"activation_function": activation}))
    if activation == "torch.nn.Tanh":
        (tmp_path / "d/pytorch_model.bin").touch()
    with pytest.raises(UserError, match=message):
        check_modules(str(tmp_path))


def test_sentence_transformers_usual_modules_pass(tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    types = [{"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in modules]
    (tmp_path / "modules.json").write_text(json.dumps(types))
    (tmp_path / "model.safetensors").touch()
    check_modules(str(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "generation_config.json", "tokenizer.json"])
def test_a_damaged_teacher_is_named_before_it_is_loaded(tmp_path, name):
    """Transformers takes a flipped bit of weights as right, and a damaged generation config as none."""
    with ArtifactJob("teacher", Nothing(), tmp_path / "teacher").write() as partial:
        checkpoint(partial, NETWORKS["llama"], [])
    load_base(str(tmp_path / "teacher"))
    path = tmp_path / "teacher" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for load in (load_base, load_tokenizer):
        with pytest.raises(UserError, match=rf"{name} is damaged: its checksum .* Make the teacher again with"):
            load(str(tmp_path / "teacher"))
    (tmp_path / "teacher/manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        load_base(str(tmp_path / "teacher"))


def test_a_swapped_manifest_is_named(tmp_path):
    with ArtifactJob("teacher", Nothing(), tmp_path / "teacher").write() as partial:
        checkpoint(partial, NETWORKS["llama"], [])
    manifest, other = tmp_path / "teacher/manifest.json", tmp_path / "teacher/generation_config.json"
    contents = manifest.read_text(), other.read_text()
    other.write_text(contents[0])
    manifest.write_text(contents[1])
    with pytest.raises(UserError, match=r"manifest\.json and .*generation_config\.json are swapped"):
        load_base(str(tmp_path / "teacher"))


def test_a_manifest_of_another_program_is_left_alone(tmp_path):
    folder = checkpoint(tmp_path / "base", NETWORKS["llama"], [])
    (folder / "manifest.json").write_text('{"name": "a web app"}')
    load_base(str(folder))
