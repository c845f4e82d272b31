"""Settings and data that cannot be meant are refused with one message, before anything is computed."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from unit.test_recommender import shop

from distill.export_soft_labels import Config as ExportConfig
from distill.runtime.config import parse
from distill.runtime.devices import check_device
from distill.runtime.errors import UserError
from distill.runtime.json_files import read_object
from distill.runtime.parquet import (
    id_column,
    number_lists,
    number_matrix,
    read_parquet,
    text_column,
    whole_numbers,
)
from scripts import add_memory, evaluate, prepare_data
from student.config import BaselineConfig
from student.config import Config as StudentConfig
from student.histories import read_histories
from student.recommender import Recommender
from teacher.base_model import check_sizes
from teacher.config import Config as TeacherConfig

SEED = "a whole number from 0 to 4294967295"


@pytest.mark.parametrize(
    ("config", "words", "message"),
    [
        (TeacherConfig, "--lr nan", "--lr is nan; expected a number above 0"),
        (TeacherConfig, "--lr .inf", "--lr is"),
        (TeacherConfig, "--weight_decay nan", "--weight_decay is nan"),
        (TeacherConfig, "--clip 0", "--clip is 0; expected a number above 0"),
        (TeacherConfig, "--crop -1", "--crop is -1; expected a number from 0 to 1"),
        (TeacherConfig, "--valid_users 0", "--valid_users is 0; expected a whole number of at least 1"),
        (TeacherConfig, "--tasks {stream: .inf}", "--tasks.stream is inf; expected a finite number"),
        (TeacherConfig, "--sizes {hidden_size: .nan}", "--sizes.hidden_size is nan; expected a finite number"),
        (TeacherConfig, "--seed 8589934592", SEED),
        (StudentConfig, "--lr nan", "--lr is nan"),
        (StudentConfig, "--weight_decay 1e999", "--weight_decay is inf; expected a finite number"),
        (StudentConfig, "--gamma .inf", "--gamma is inf; expected a finite number"),
        (StudentConfig, "--seed -1", SEED),
        (StudentConfig, "--seeds 0,-1", SEED),
        (StudentConfig, "--max_history 100000000", "expected a whole number from 1 to 100000"),
        (BaselineConfig, "--lr -1", "--lr is -1; expected a number above 0"),
        (BaselineConfig, "--dropout 2", "--dropout is 2; expected a number from 0 to 1"),
        (evaluate.Config, "--users 0", "--users is 0; expected a whole number of at least 1"),
        (evaluate.Config, "--users -1", "--users is -1; expected a whole number of at least 1"),
        (evaluate.Config, "--batch_size 0", "--batch_size is 0; expected a whole number of at least 1"),
        (evaluate.Config, "--transitions.window 0", "--transitions.window is 0; expected a whole number of at least 1"),
        (evaluate.Config, "--transitions.window -1", "--transitions.window is -1; expected a whole number"),
        (add_memory.Config, "--discount .inf", "--discount is"),
        (ExportConfig, "--mix llm=.nan", "--mix.llm is nan; expected a finite number"),
    ],
)
def test_settings(config, words, message):
    with pytest.raises(UserError) as error:
        parse(config, None, words.split(" ", 1))
    assert message in str(error.value)


@pytest.mark.parametrize(("text", "message"), [("", "holds nothing"), ("- 1", "holds - 1"), ("a: &a [*a]", "too deep")])
def test_config_files(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        parse(TeacherConfig, None, ["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nlr: 0.1\nseed: 2\n", r"c.yaml:3: the key 'seed' stands in line 1 already"),
        ("tasks:\n  seqrec: 1\n  seqrec: 2\n", r"c.yaml:3: the key 'seqrec' stands in line 2 already"),
        ("seed: 1\nepochs:\n", "--epochs is null; expected a whole number of at least 1"),
        ("check: null\n", "--check is null; expected true or false"),
        ("seed: 1\nconfig: true\n", "c.yaml:2: a config file cannot name another one"),
    ],
)
def test_config_files_that_are_not_clear(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        parse(TeacherConfig, None, ["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not readable JSON"),
        ("[" * 100_000, "not readable JSON"),
        ("\xff", "not readable JSON"),
        ("[1]", r"expected an object \{...\}, got \[1\]"),
        ('{"n": 1, "n": 2}', "the key 'n' appears twice"),
        ('{"x": 1}', "it has no 'n'"),
        ('{"n": true}', "expected a whole number as 'n', got True"),
        ('{"n": 1.0}', "expected a whole number as 'n', got 1.0"),
    ],
)
def test_json_objects(tmp_path, text, message):
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message + r".*Make it again\."):
        read_object(tmp_path / "a.json", {"n": int}, "Make it again.")
    (tmp_path / "a.json").write_text('{"n": 3, "x": null}')
    assert read_object(tmp_path / "a.json", {"n": int}) == {"n": 3, "x": None}
    with pytest.raises(UserError, match="Missing file"):
        read_object(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("read", "column", "message"),
    [
        (text_column, pa.array(["a", None]), "holds string, 1 of them missing; expected texts"),
        (text_column, pa.array([1, 2]), "holds int64; expected texts"),
        (id_column, pa.array(["a", "a"]), "holds an id twice"),
        (whole_numbers, pa.array([1.0, 2.0]), "holds double; expected whole numbers"),
        (whole_numbers, pa.array([1, 2**63], pa.uint64()), "expected numbers of at most 63 bits"),
        (number_lists, pa.array([1, 2]), "expected lists of whole numbers"),
        (number_lists, pa.array([[1], None]), "1 of them missing"),
        (number_lists, pa.array([[1], [None]]), "have gaps"),
        (number_matrix, pa.array([[1, 2], [3]]), "differ in length"),
        (number_matrix, pa.array([[1], [2, 3], []]), "differ in length"),
    ],
)
def test_columns(tmp_path, read, column, message):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"c": column}), path)
    with pytest.raises(UserError, match=f"a.parquet is damaged: .*{message}"):
        read(read_parquet(path, ("c",)), "c", path)


def test_columns_that_are_right(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"t": ["a", None], "n": pa.array([3, 4], pa.uint8()), "l": [[1], [2, 3]], "m": [[1, 2], [3, 4]]}
    pq.write_table(pa.table(columns), path)
    table = read_parquet(path, ("t", "n"))
    assert text_column(table, "t", path, may_be_null=True).to_pylist() == ["a", None]
    assert whole_numbers(table, "n", path).tolist() == [3, 4]
    values, offsets = number_lists(table, "l", path)
    assert values.tolist() == [1, 2, 3] and offsets.tolist() == [0, 1, 3]
    assert number_matrix(table, "m", path).tolist() == [[1, 2], [3, 4]]


def test_weights_that_are_no_numbers(tmp_path):
    shop().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["head"].view(-1)[0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model.safetensors is damaged: head holds NaN or infinity"):
        Recommender.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_sizes": 64}, "Unknown field 'hidden_sizes' in --sizes. Did you mean 'hidden_size'?"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; expected a whole number of at least 1"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers is 1.5"),
        ({"hidden_size": 60, "num_attention_heads": 7}, "expected a width that the heads divide into even parts"),
        ({"hidden_size": 12, "num_attention_heads": 4}, "head_dim 3"),
        ({"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads 3"),
    ],
)
def test_sizes_of_a_teacher_without_base(sizes, message):
    with pytest.raises(UserError) as error:
        check_sizes(sizes)
    assert message in str(error.value)
    check_sizes({"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1})


def test_devices():
    check_device("cpu")
    check_device("auto")
    for name, message in (("potato", "expected cpu, cuda"), ("cuda:99", "GPUs that torch can use")):
        with pytest.raises(UserError, match=message):
            check_device(name)


def test_lists_and_beams_end_with_the_catalogue():
    student = shop()
    histories = [["i1", "i2"]]
    assert student.recommend(histories, 10**9, 10**9) == student.recommend(histories, *[len(student.item_ids)] * 2)


def test_a_teacher_is_no_student(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "teacher.json").touch()
    with pytest.raises(UserError, match=r"is not a student: .* It is a teacher\."):
        Recommender.from_pretrained(tmp_path)


def test_histories(tmp_path):
    file = tmp_path / "histories"
    file.write_text("\ufeffi1,i2\n")
    assert read_histories(None, file) == [["i1", "i2"]]
    for text, message in (("", "holds no history"), ("[" * 100_000, "line 1: not a JSON list")):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            read_histories(None, file)


def prepare(tmp_path, form, files, *words):
    for name, content in files.items():
        if isinstance(content, pa.Table):
            pq.write_table(content, tmp_path / name)
        else:
            (tmp_path / name).write_text(content)
    output = tmp_path / "run/dataset"
    options = ["--format", form, "--input", str(tmp_path), "--output", str(output), *words]
    try:
        prepare_data.main(parse(prepare_data.Config, None, options))
    except UserError:
        assert not output.exists()
        raise
    return output


INTERACTIONS = {"user_id": ["a"] * 3 + ["b"] * 3, "item_id": ["x", "y", "z"] * 2, "timestamp": [1, 2, 3] * 2}
ITEMS = {"item_id": ["x", "y", "z"], "title": ["one", "two", "three"]}


@pytest.mark.parametrize("value", [["x"], {"a": 1}, b"\xff"], ids=["list", "struct", "binary"])
@pytest.mark.parametrize("column", ["user_id", "item_id", "title"])
def test_nested_and_binary_columns(tmp_path, column, value):
    interactions, items = dict(INTERACTIONS), dict(ITEMS)
    if column == "title":
        items["title"] = [value] * 3
    else:
        interactions[column] = [value] * 6
    tables = {"interactions.parquet": pa.table(interactions), "items.parquet": pa.table(items)}
    with pytest.raises(UserError, match=f"column '{column}' holds .*; expected text or numbers"):
        prepare(tmp_path, "table", tables)


def test_other_nested_columns_do_not_matter(tmp_path):
    items = pa.table(ITEMS | {"images": [["a"], [], ["b"]]})
    prepare(tmp_path, "table", {"interactions.parquet": pa.table(INTERACTIONS), "items.parquet": items})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"u": [0, 1, 1000000000]}', "names item 1,000,000,000, but has only 3 interactions"),
        ('{"u": [0, 1, %d]}' % 10**30, "item number of more than 63 bits"),  # noqa: UP031
        ('{"u": [0, 1, %s]}' % ("9" * 5000), "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"u\\ud800": [0, 1, 2]}', "half of a surrogate pair"),
        ("", "cut off or no JSON"),
    ],
)
def test_lcrec_files(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, "lcrec", {"a.inter.json": text})


def test_lcrec_with_a_byte_order_mark_and_emoji(tmp_path):
    text = '\ufeff{"u\\ud83d\\ude00": [0, 1, 2], "v": [0, 1, 2]}'
    users = pq.read_table(prepare(tmp_path, "lcrec", {"a.inter.json": text}) / "sequences.parquet")["user_id"]
    assert users.to_pylist() == ["u😀", "v"]


@pytest.mark.parametrize(
    ("form", "files", "message"),
    [
        ("movielens", ("ratings.dat", "movies.dat"), "ratings.dat: expected lines of 4 fields, found none"),
        ("movielens", ("u.data", "u.item"), "u.data: expected lines of 4 fields, found none"),
        ("amazon", ("reviews.json", "meta_x.json"), "reviews.json: expected reviews, found none"),
        ("table", ("interactions.csv",), "expected a header"),
    ],
)
def test_empty_files(tmp_path, form, files, message):
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, form, dict.fromkeys(files, ""))


def test_empty_metadata(tmp_path):
    rows = [
        {"reviewerID": user, "asin": item, "unixReviewTime": time, "overall": 5}
        for user in "ab"
        for time, item in enumerate("xyz")
    ]
    files = {"reviews.json": "".join(json.dumps(row) + "\n" for row in rows), "meta_x.json": ""}
    with pytest.raises(UserError, match=r"meta_x.json: expected metadata of items, found none"):
        prepare(tmp_path, "amazon", files, "--k_core", "0")


@pytest.mark.parametrize(("output", "message"), [(".", "exists and is no dataset"), ("/", "root of the file system")])
def test_outputs(tmp_path, monkeypatch, output, message):
    (tmp_path / "mine").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, "table", {"interactions.parquet": pa.table(INTERACTIONS)}, "--output", output, "--overwrite")
    assert (tmp_path / "mine").is_file()
