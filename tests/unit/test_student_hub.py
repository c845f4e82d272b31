"""Students on the hub, without a network: a hub that is a folder."""

import json
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub.errors import OfflineModeIsEnabled

from distill.runtime.errors import UserError
from student import hub
from student.models.nested import Nested, NestedConfig
from student.recommender import Recommender

ROWS = [
    {"system": "floor", "floor": "floor", "split": "test", "seed": 1, "users": 1200, "recall@5": 0.1, "ndcg@5": 0.2},
    {"system": "dwr", "floor": "floor", "split": "test", "seed": 1, "users": 1200, "recall@5": 0.3, "ndcg@5": 0.4},
]
ROWS = [row | {"recall@10": row["recall@5"] * 2, "ndcg@10": row["ndcg@5"] * 2} for row in ROWS]


def shop():
    torch.manual_seed(0)
    network = Nested(NestedConfig(2, 4, d_model=8, d_ff=8, heads=2, d_head=4, outer=1, layers=1)).eval()
    codes = np.array([[0, 1], [1, 2], [3, 3]])
    return Recommender(network, codes, ["a", "b", "c"], ["A", "B", "C"], facts={"backbone": "nested", "variant": "dwr"})


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A hub that keeps one repository, and what it was asked for."""
    asked = {}

    class FakeApi:
        def create_repo(self, repo_id, private, exist_ok):
            asked["created"] = (repo_id, private, exist_ok)

        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / "hub")

    def download(repo_id, revision, allow_patterns):
        asked["downloaded"] = (repo_id, revision, allow_patterns)
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_a_pushed_student_comes_back(remote, tmp_path):
    student = shop()
    (tmp_path / "metrics.json").write_text(json.dumps(ROWS))
    student.push_to_hub("shop/light", "cc-by-4.0", "Toys", evaluation=tmp_path)
    assert remote["created"] == ("shop/light", True, True)
    files = {path.name for path in (tmp_path / "hub").iterdir()}
    assert files == {"README.md", "config.json", "model.safetensors", "items.parquet", "trie.safetensors"}
    again = Recommender.from_pretrained("shop/light", revision="v1")
    assert remote["downloaded"] == ("shop/light", "v1", ["*.json", "*.safetensors", "items.parquet"])
    assert again.recommend([["a"]], k=2) == student.recommend([["a"]], k=2)
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "| this student | 0.3000 | 0.4000 | 0.6000 | 0.8000 |" in card
    assert "| floor, learns nothing: floor | 0.1000 | 0.2000 | 0.2000 | 0.4000 |" in card
    assert "1,200 users of the test part of Toys, seed 1." in card


def test_the_card_has_the_front_matter_that_the_hub_reads():
    rows = [ROWS[1], ROWS[0]]
    facts = front_matter(hub.model_card(shop(), "shop/light", "cc-by-4.0", "Toys", rows))
    assert (facts["library_name"], facts["license"]) == ("lohrec-distill", "cc-by-4.0")
    assert "semantic-ids" in facts["tags"]
    (entry,) = facts["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "light" and result["dataset"] == {"name": "Toys", "type": "Toys", "split": "test"}
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [
        ("recall@5", 0.3),
        ("ndcg@5", 0.4),
        ("recall@10", 0.6),
        ("ndcg@10", 0.8),
    ]
    plain = hub.model_card(shop(), "shop/light", "other", "Toys")
    assert "model-index" not in front_matter(plain) and "Metrics" not in plain


def test_what_the_hub_refuses_is_one_message(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match="There is no folder no/where, nor such a student on the hub: offline mode"):
        Recommender.from_pretrained("no/where")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", offline)
    with pytest.raises(UserError, match="The hub does not accept shop/light: offline mode is enabled"):
        shop().push_to_hub("shop/light", "other", "Toys")
    (tmp_path / "metrics.json").write_text(json.dumps(ROWS))
    with pytest.raises(UserError, match="has no system 'tiger'; it has floor, dwr"):
        hub.evaluation_rows(tmp_path, "tiger")
    with pytest.raises(UserError, match="is no evaluation's metrics"):
        hub.evaluation_rows(tmp_path / "nothing", "dwr")


def test_paths_are_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "dwr").mkdir()
    assert hub.is_repo("shop/light")
    for path in ("runs/dwr", "runs/dwt", "./shop/light", "../light", "/shop/light", "light", "a/b/c", tmp_path):
        assert not hub.is_repo(path)
