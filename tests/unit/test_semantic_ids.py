from dataclasses import dataclass

import numpy as np
import pytest

from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs, token, write_codes

CODES = np.array([[137, 112, 79, 200], [0, 0, 0, 0], [255, 1, 2, 3], [0, 0, 0, 0]])


@dataclass(frozen=True)
class Nothing:
    """No settings."""


@pytest.fixture
def folder(tmp_path):
    with ArtifactJob("semantic_ids", Nothing(), tmp_path / "semantic_ids").write() as working:
        write_codes(working, ["p", "q", "r", "s"], CODES)
        write_json(working / "report.json", {"codebook_size": 256})
    return tmp_path / "semantic_ids"


def test_round_trip(folder):
    ids = SemanticIDs.load(folder, n_items=4)
    np.testing.assert_array_equal(ids.codes, CODES)
    assert (ids.levels, ids.codebook_size, len(np.unique(ids.codes, axis=0))) == (4, 256, 3)


def test_tokens(folder):
    ids = SemanticIDs.load(folder)
    assert ids.text(0) == "<a_137><b_112><c_79><d_200>"
    tokens = ids.tokens()
    assert len(tokens) == len(set(tokens)) == 1024
    assert tokens[0] == "<a_0>" and tokens[256 + 1] == "<b_1>" and tokens[-1] == "<d_255>" == token(3, 255)


def test_refuses_ids_of_another_catalogue(folder):
    with pytest.raises(UserError, match="codes of 4 items, the data set has 5"):
        SemanticIDs.load(folder, n_items=5)


def test_refuses_a_truncated_file(folder):
    path = folder / "codes.parquet"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"codes\.parquet is damaged: it has 50 bytes"):
        SemanticIDs.load(folder)
