"""SETRec's public splits: what is read from its .npy files, and that no code in them runs."""

import json
import os
import pickle
from itertools import pairwise

import numpy as np
import pytest

from distill.data.config import PrepareSettings, check
from distill.data.prepare import prepare
from distill.data.sources import Options, setrec
from distill.data.sources.numpy_objects import read_dictionary
from distill.runtime.errors import UserError

TRAINING = {0: [3, 1, 1], 1: [2], 4: []}
VALIDATION = {0: [4], 1: [0, 3], 4: [2, 1]}
TEST = {0: [2, 0], 1: [], 4: [5], 7: [1]}


def write(folder, training=TRAINING, validation=VALIDATION, test=TEST):
    for path, part in zip(setrec.PARTS, (training, validation, test), strict=True):
        np.save(folder / path, part, allow_pickle=True)
    return folder


def test_sequences_and_parts(tmp_path):
    source = setrec.read(write(tmp_path), Options())
    assert source.user_ids.to_pylist() == ["0", "1", "4", "7"] and source.times is None
    rows = [source.values[a:b].tolist() for a, b in pairwise(source.offsets)]
    assert rows == [[3, 1, 1, 4, 2, 0], [2, 0, 3], [2, 1, 5], [1]]
    assert source.parts.tolist() == [0, 0, 0, 1, 2, 2, 0, 1, 1, 1, 1, 2, 2]
    assert source.items["item_id"].to_pylist() == ["0", "1", "2", "3", "4", "5"]


def test_the_split_is_kept(tmp_path):
    settings = PrepareSettings(format="setrec", input=write(tmp_path), split="global_cut", short_users="drop")
    check(settings)
    prepared = prepare(settings)
    assert prepared.source.user_ids.to_pylist() == ["0", "1", "4"] and prepared.short_users == 1
    assert prepared.ends.tolist() == [[3, 4], [1, 3], [0, 2]]


def test_filters_move_the_split(tmp_path):
    settings = PrepareSettings(format="setrec", input=write(tmp_path), split="global_cut", duplicates="first")
    prepared = prepare(PrepareSettings(**vars(settings) | {"short_users": "drop"}))
    assert prepared.source.values.tolist()[:5] == [3, 1, 4, 2, 0]  # the second 1 of the training part is gone
    assert prepared.ends.tolist()[0] == [2, 3]


def test_texts_and_numbers_of_numpy(tmp_path):
    array = {np.int64(0): np.array([1, 0, 1]), np.int64(1): [np.int32(1), 0]}
    write(tmp_path, array, {0: [1]}, {0: [0]})
    texts = {str(number): {"title": f"Thing {number}", "brand": ["A", "B"]} for number in range(3)}
    (tmp_path / "toys.item.json").write_text(json.dumps(texts))
    source = setrec.read(tmp_path, Options())
    assert source.values.tolist() == [1, 0, 1, 1, 0, 1, 0] and source.items["title"][2].as_py() == "Thing 2"
    assert source.items["brand"][0].as_py() == "A, B"


class Code:
    """Pickled, it names a function that is called when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_does_not_run(tmp_path):
    write(tmp_path, {0: Code(tmp_path / "made")})
    with pytest.raises(UserError, match=r"training_dict.npy: names posix.mkdir, which could run code"):
        setrec.read(tmp_path, Options())
    assert not (tmp_path / "made").exists()
    np.load(tmp_path / setrec.PARTS[0], allow_pickle=True)  # as it would have
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.arange(3), r"got an array of shape \(3,\) and type int64"),
        ([1, [2]], "got an array of shape"),
        ({"a": [1]}, "expected user numbers with lists of item numbers, got 'a'"),
        ({0: [1, -2]}, "expected user numbers with lists of item numbers"),
        ({0: [1, True]}, "expected user numbers with lists of item numbers"),
        ({0: 5}, "expected user numbers with lists of item numbers"),
        ({0: [10**9]}, "has only 10 interactions: expected items numbered from 0 without such gaps, or NAME.item.json"),
    ],
)
def test_what_is_refused(content, message, tmp_path):
    write(tmp_path)
    array = np.array(content, dtype=object) if isinstance(content, list) else content
    np.save(tmp_path / setrec.PARTS[0], array, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        setrec.read(tmp_path, Options())


@pytest.mark.parametrize("cut", [0, 4, 100, 200])
def test_a_file_that_is_cut_off(cut, tmp_path):
    write(tmp_path)
    path = tmp_path / setrec.PARTS[1]
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"validation_dict.npy: expected a dictionary written by numpy.save; it is cut"):
        read_dictionary(path)


def test_a_pickle_of_something_else(tmp_path):
    header = write(tmp_path) / setrec.PARTS[0]
    start = header.read_bytes().index(b"\n") + 1
    header.write_bytes(header.read_bytes()[:start] + pickle.dumps("text"))
    with pytest.raises(UserError, match="got a str"):
        read_dictionary(header)


def test_the_split_must_be_named(tmp_path):
    for more in ({}, {"split": "global_cut", "valid_from": 0.5}):
        with pytest.raises(UserError, match="add --split global_cut"):
            check(PrepareSettings(format="setrec", input=tmp_path, **more))


def test_a_part_without_targets(tmp_path):
    write(tmp_path, test={})
    with pytest.raises(UserError, match="the test part has no target with an item before it"):
        prepare(PrepareSettings(format="setrec", input=tmp_path, split="global_cut"))
