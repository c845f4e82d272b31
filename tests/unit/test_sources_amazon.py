"""Amazon's downloads of three years, as tiny files; malformed lines; cut-off archives."""

import ast
import gzip
import json
from itertools import pairwise

import pytest

from distill.data.sources import Options, amazon, json_lines, numbering
from distill.data.sources.refine import refine
from distill.runtime.errors import UserError

OPTIONS = Options(max_bad_lines=0)
# the same four reviews, in each year's words; the second is the earliest
REVIEWS = [("u", "B1", 300, 5.0), ("u", "B2", 100, 4.0), ("v", "B1", 200, 1.0), ("u", "B3", 300, 3.0)]


def old(user, item, time, rating, **more):
    return {"reviewerID": user, "asin": item, "unixReviewTime": time, "overall": rating, "reviewText": "ok"} | more


def new(user, item, time, rating, **more):
    return {"user_id": user, "asin": "variant", "parent_asin": item, "timestamp": time * 1000, "rating": rating} | more


def lines(rows, write=json.dumps):
    return "".join(write(row) + "\n" for row in rows)


def store(path, text):
    with gzip.open(path, "wb") if path.suffix == ".gz" else open(path, "wb") as file:
        file.write(text.encode(errors="surrogateescape"))


def listed(source):
    """User -> (item, time) in order."""
    ids = source.items["item_id"].to_pylist()
    both = list(zip([ids[item] for item in source.values], source.times.tolist(), strict=True))
    return {user: both[a:b] for user, (a, b) in zip(source.user_ids.to_pylist(), pairwise(source.offsets), strict=True)}


EXPECTED = {"u": [("B2", 100), ("B1", 300), ("B3", 300)], "v": [("B1", 200)]}  # of equal times the file's order


@pytest.mark.parametrize("year", ["2014", "2018", "2023", "2023 csv"])
@pytest.mark.parametrize("zipped", ["", ".gz"])
def test_reviews_of_every_year(tmp_path, year, zipped):
    if year == "2023 csv":
        rows = "".join(f"{user},{item},{rating},{time * 1000}\n" for user, item, time, rating in REVIEWS)
        store(tmp_path / f"N.csv{zipped}", "user_id,parent_asin,rating,timestamp\n" + rows)
    elif year == "2023":
        store(tmp_path / f"N.jsonl{zipped}", lines(new(*row) for row in REVIEWS))
    else:
        store(tmp_path / f"reviews_N_5.json{zipped}", lines(old(*row) for row in REVIEWS))
    source = amazon.read(tmp_path, OPTIONS)
    assert listed(source) == EXPECTED
    assert source.items.column_names == ["item_id"]
    assert sorted(source.ratings.tolist()) == [1, 3, 4, 5]
    assert listed(amazon.read(tmp_path, Options(min_rating=4))) == {"u": [("B2", 100), ("B1", 300)]}


METADATA = {
    "2014": [
        {
            "asin": "B1",
            "title": 'Nick\'s "pick"',
            "categories": [["Music", "Strings"], ["Music", "Gifts"]],
            "brand": "X",
        },
        {"asin": "B9", "title": "not reviewed"},
        {"asin": "B2", "description": "Old &amp; <b>good</b>", "title": None, "price": 3.5},
        {"asin": "B3", "title": "Third"},
    ],
    "2018": [
        {"asin": "B1", "title": 'Nick\'s "pick"', "category": ["Music", "Strings", "Gifts"], "brand": "X"},
        {"asin": "B2", "title": "", "description": ["Old &amp;amp;", "<b>good</b>"], "rank": ["a"], "details": {}},
        {"asin": "B2", "title": "second of its kind"},
        {"asin": "B3", "title": "Third", "description": [], "brand": ""},
    ],
    "2023": [
        {"parent_asin": "B3", "title": "Third", "store": None, "images": [{"large": "x"}]},
        {"parent_asin": "B1", "title": 'Nick\'s "pick"', "categories": ["Music", "Strings", "Gifts"], "store": "X"},
        {"parent_asin": "B2", "title": None, "description": ["Old &amp;", "good"], "main_category": "M"},
    ],
}


@pytest.mark.parametrize("year", METADATA)
def test_metadata_of_every_year(tmp_path, year):
    store(tmp_path / "N.json.gz", lines((new if year == "2023" else old)(*row) for row in REVIEWS))
    write = repr if year == "2014" else json.dumps  # 2014's lines are Python, not JSON
    store(tmp_path / "meta_N.json.gz", lines(METADATA[year], write))
    source = amazon.read(tmp_path, OPTIONS)
    assert source.items["item_id"].to_pylist() == ["B1", "B2", "B3"]
    cleaned = refine(source, Options(clean_html=True)).items
    assert cleaned["title"].to_pylist() == ['Nick\'s "pick"', "", "Third"]
    assert cleaned["description"].to_pylist() == ["", "Old & good", ""]
    assert cleaned["brand"].to_pylist() == ["X", "", ""]
    assert cleaned["categories"].to_pylist() == ["Music, Strings, Gifts", "", ""]


def test_metadata_of_other_items_are_not_parsed(tmp_path, monkeypatch):
    """Python literals are slow: only lines of items that were reviewed are parsed."""
    store(tmp_path / "N.json", lines(old(*row) for row in REVIEWS))
    shop = [{"asin": f"X{number}", "title": "not reviewed"} for number in range(50)]
    store(tmp_path / "meta_N.json", lines([*shop, *METADATA["2014"]], repr))
    parsed = []
    parse = ast.literal_eval
    monkeypatch.setattr(json_lines.ast, "literal_eval", lambda text: parsed.append(text) or parse(text))
    assert amazon.read(tmp_path, OPTIONS).items["title"].to_pylist()[2] == "Third"
    assert len(parsed) == 3


def test_pieces_of_scripts_are_no_titles(tmp_path):
    store(tmp_path / "N.json", lines(old("u", f"B{n}", n, 5) for n in (1, 2)))
    rows = [{"asin": "B1", "title": "var aPageStart = (new Date()).getTime();"}, {"asin": "B2", "title": "Two"}]
    store(tmp_path / "meta_N.json", lines(rows))
    items = amazon.read(tmp_path, Options(empty_text="keep")).items
    assert items["title"].to_pylist() == ["", "Two"]


def test_reviews_without_metadata(tmp_path):
    store(tmp_path / "N.json", lines(old(*row) for row in REVIEWS))
    store(tmp_path / "meta_N.json", lines([{"asin": "B1", "title": "One"}]))
    with pytest.raises(UserError, match=r"meta_N.json: no metadata for 2 of the 3 items reviewed, first B2\."):
        amazon.read(tmp_path, OPTIONS)
    kept = amazon.read(tmp_path, Options(empty_text="keep"))
    assert kept.items["title"].to_pylist() == ["One", "", ""]
    # what the k-core leaves out needs no metadata
    core = amazon.read(tmp_path, Options(item_core=2))
    assert core.items.to_pydict()["title"] == ["One"] and listed(core) == {"u": [("B1", 300)], "v": [("B1", 200)]}


BAD = [
    '{"reviewerID": "u", "asin": "B1", "unixRev',
    "[1, 2]",
    '{"asin": "B1", "unixReviewTime": 3}',
    '{"reviewerID": "u", "asin": "", "unixReviewTime": 3}',
    '{"reviewerID": "u", "asin": "B1", "unixReviewTime": "x"}',
    "\x00\x01",
    '{"reviewerID": "\udcff", "asin": "B1", "unixReviewTime": 3}',  # a byte that is no UTF-8
]


@pytest.mark.parametrize("bad", BAD)
def test_malformed_lines_are_counted_and_named(tmp_path, bad, capsys):
    good = [json.dumps(old(*row)) for row in REVIEWS]
    text = "\n".join([good[0], bad, good[1], "", good[2], bad, good[3]]) + "\n"
    store(tmp_path / "N.json", text)
    with pytest.raises(UserError, match=r"N.json:2: expected .*\. 1 malformed lines up to line 2, 0 are allowed"):
        amazon.read(tmp_path, OPTIONS)
    with pytest.raises(UserError, match=r"N.json:2: .* 2 malformed lines up to line 6, 1 are allowed.*--max_bad_lines"):
        amazon.read(tmp_path, Options(max_bad_lines=1))
    assert listed(amazon.read(tmp_path, Options(max_bad_lines=2))) == EXPECTED
    assert "left out 2 malformed lines (2, 6)" in capsys.readouterr().err


def test_numbers_as_text_are_taken(tmp_path):
    rows = [old("u", "B1", "300", "5.0"), old("u", 2, 100.0, 4)]
    store(tmp_path / "N.json", lines(rows))
    assert listed(amazon.read(tmp_path, OPTIONS)) == {"u": [("2", 100), ("B1", 300)]}


def test_half_a_character_does_no_harm(tmp_path):
    store(tmp_path / "N.json", lines([old("u", "B1", 1, 5)]))
    store(tmp_path / "meta_N.json", '{"asin": "B1", "title": "a\\ud800b"}\n')
    assert amazon.read(tmp_path, OPTIONS).items["title"].to_pylist() == ["a?b"]


@pytest.mark.parametrize("block", [1, 200, 1 << 24])
def test_blocks_do_not_show(tmp_path, block, monkeypatch):
    """Whatever the size of a block and wherever it ends; bad lines have the numbers that they have in the file."""
    monkeypatch.setattr(json_lines, "BLOCK", block)
    monkeypatch.setattr(json_lines, "PIECE", 97)
    monkeypatch.setattr(numbering, "MERGE_ROWS", 7)
    rows = [(f"u{number % 5}", f"B{number * number % 11}", 1000 - number, 5.0) for number in range(60)]
    written = [json.dumps(old(*row)) for row in rows]
    store(tmp_path / "N.json.gz", "\n".join([*written[:40], "nonsense", *written[40:]]))  # no line end at the end
    source = amazon.read(tmp_path, Options(max_bad_lines=1))
    expected = {}
    for user, item, time, _ in rows:
        expected[user] = [(item, time), *expected.get(user, [])]
    assert listed(source) == expected
    assert source.user_ids.to_pylist() == [f"u{number}" for number in range(5)]
    with pytest.raises(UserError, match=r"N.json.gz:41: expected a JSON object on one line, got 'nonsense'"):
        amazon.read(tmp_path, OPTIONS)


@pytest.mark.parametrize("name", ["N.jsonl.gz", "N.csv.gz", "meta_N.json.gz"])
def test_cut_off_archive_says_how_far_it_read(tmp_path, name):
    rows = [(f"user{number * 7919 % 100_003}", f"B{number * 104_729 % 99_991}", number, 5.0) for number in range(5000)]
    text = lines(new(*row) for row in rows)
    if name == "N.csv.gz":
        text = "user_id,parent_asin,rating,timestamp\n" + "".join(f"{u},{i},{r},{t}\n" for u, i, t, r in rows)
    if name.startswith("meta"):
        store(tmp_path / "N.jsonl", text)
        text = lines({"asin": item, "title": user} for user, item, _, _ in rows)
    whole = gzip.compress(text.encode())
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        UserError, match=rf"{name}: cut off or damaged .* after ([\d,]+) bytes and [1-9][\d,]* lines"
    ) as error:
        amazon.read(tmp_path, OPTIONS)
    words = str(error.value).replace(",", "").split()
    read, counted = int(words[words.index("bytes") - 1]), int(words[words.index("lines") - 1])
    assert 0.3 * len(text) < read < 0.7 * len(text)
    assert text[:read].count("\n") == counted


def test_damaged_archive(tmp_path):
    (tmp_path / "N.json.gz").write_bytes(b"no archive at all")
    with pytest.raises(UserError, match=r"N.json.gz: cut off or damaged .* after 0 bytes and 0 lines"):
        amazon.read(tmp_path, OPTIONS)


def test_files(tmp_path):
    with pytest.raises(UserError, match="No folder"):
        amazon.files(tmp_path / "none", OPTIONS)
    with pytest.raises(UserError, match=r"found nothing that ends in .json"):
        amazon.files(tmp_path, OPTIONS)
    for name in ("A.jsonl.gz", "B.jsonl.gz", "meta_A.jsonl.gz"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"found A.jsonl.gz, B.jsonl.gz, meta_A.jsonl.gz"):
        amazon.files(tmp_path, OPTIONS)
    named = amazon.files(tmp_path / "B.jsonl.gz", OPTIONS)
    assert [path.name for path in named] == ["B.jsonl.gz", "meta_A.jsonl.gz"]


def test_no_reviews(tmp_path):
    (tmp_path / "N.json").write_text("\n")
    with pytest.raises(UserError, match=r"N.json: expected reviews, found none"):
        amazon.read(tmp_path, OPTIONS)
