"""MovieLens's three shapes, as tiny files."""

from itertools import pairwise

import pytest

from distill.data.sources import Options, movielens
from distill.runtime.errors import UserError

RATINGS = [("7", "20", 5, 300), ("9", "10", 1, 50), ("7", "10", 4, 100), ("7", "30", 3, 300)]
FILMS = [
    ("10", "Café (1995)", "Drama|War"),
    ("20", "A, B & C (1996)", ""),
    ("30", "Third", "Comedy"),
    ("40", "Unseen", ""),
]


def flags(genres):
    return "|".join(str(int(genre in genres.split("|"))) for genre in movielens.GENRES)


def write(folder, shape, encoding="latin-1"):
    if shape == "100k":
        ratings, films = folder / "u.data", folder / "u.item"
        ratings.write_text("".join("\t".join(map(str, row)) + "\n" for row in RATINGS))
        lines = "".join(f"{number}|{title}|01-Jan-1995||http://x|{flags(genres)}\n" for number, title, genres in FILMS)
        films.write_bytes(lines.encode("latin-1"))
    elif shape == "1m":
        ratings, films = folder / "ratings.dat", folder / "movies.dat"
        ratings.write_text("".join("::".join(map(str, row)) + "\n" for row in RATINGS))
        films.write_bytes("".join("::".join(row) + "\n" for row in FILMS).encode(encoding))
    else:
        ratings, films = folder / "ratings.csv", folder / "movies.csv"
        ratings.write_text("userId,movieId,rating,timestamp\n" + "".join(",".join(map(str, r)) + "\n" for r in RATINGS))
        rows = "".join(f'{number},"{title}",{genres or "(no genres listed)"}\n' for number, title, genres in FILMS)
        films.write_text("movieId,title,genres\n" + rows, encoding="utf-8")
    return ratings, films


@pytest.mark.parametrize(("shape", "encoding"), [("100k", ""), ("1m", "latin-1"), ("1m", "utf-8"), ("20m", "")])
def test_every_shape(tmp_path, shape, encoding):
    files = list(write(tmp_path, shape, encoding or "utf-8"))
    assert movielens.files(tmp_path, Options()) == files
    source = movielens.read(tmp_path, Options())
    assert source.items.to_pydict() == {
        "item_id": ["10", "20", "30"],
        "title": ["Café (1995)", "A, B & C (1996)", "Third"],
        "categories": ["Drama, War", "", "Comedy"],
    }
    assert source.user_ids.to_pylist() == ["7", "9"]
    assert [source.values[a:b].tolist() for a, b in pairwise(source.offsets)] == [[0, 1, 2], [0]]
    assert source.times.tolist() == [100, 300, 300, 50]
    assert source.ratings.tolist() == [4, 5, 3, 1]


@pytest.mark.parametrize(
    ("shape", "name", "line", "message"),
    [
        ("100k", "u.data", "7\t10\t5", "u.data:5: malformed or cut off: expected 4 fields, got 3"),
        ("100k", "u.item", "50|x|", "u.item:5: malformed or cut off: expected 24 fields, got 3"),
        ("1m", "ratings.dat", "7::10::five::3", "ratings.dat:5: expected a number as rating, got 'five'"),
        ("1m", "ratings.dat", "7::99::5::3", "ratings.dat:5: unknown item '99': expected one of the 4 items of"),
        ("1m", "movies.dat", "10::again::Drama", "movies.dat:5: duplicate film id '10'"),
        ("20m", "ratings.csv", "7,10,5", "ratings.csv:6: malformed or cut off: expected 4 fields, got 3"),
        ("20m", "ratings.csv", "7,10,5,", "ratings.csv:6: expected a number as timestamp, got ''"),
    ],
)
def test_refusals(tmp_path, shape, name, line, message):
    write(tmp_path, shape)
    with open(tmp_path / name, "a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=message):
        movielens.read(tmp_path, Options())


def test_files(tmp_path):
    with pytest.raises(UserError, match="No folder"):
        movielens.files(tmp_path / "none", Options())
    with pytest.raises(UserError, match=r"expected one of u.data, ratings.dat, ratings.csv; found nothing"):
        movielens.files(tmp_path, Options())
    write(tmp_path, "1m")[1].unlink()
    with pytest.raises(UserError, match=r"missing file movies.dat beside ratings.dat"):
        movielens.files(tmp_path, Options())
