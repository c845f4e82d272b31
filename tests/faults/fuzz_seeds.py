"""Valid inputs of the readers of raw interactions: small files of every format, all of them the same shop."""

import gzip
import io
import json
from itertools import count

import pyarrow as pa
import pyarrow.parquet as pq

from distill.data.sources.movielens import GENRES

from .fuzz_contract import Files

ITEMS = ["tent", "lamp", "rope", "mug", "map", "saw"]
SEQUENCES = {"ann": [0, 1, 2, 3], "bob": [3, 2, 1], "cy": [4, 0, 5, 1, 2], "dee": [5, 4, 3]}
clock = count(1_400_000_000, 3600)
INTERACTIONS = [(user, ITEMS[item], next(clock)) for user, row in SEQUENCES.items() for item in row]
TITLES = {name: f"{name} no. {number}" for number, name in enumerate(ITEMS)}


def recbole_plain() -> Files:
    """RecBole's N.inter with N.item."""
    return {
        "N.inter": _lines(
            ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
            + [f"{user}\t{item}\t4.0\t{time}" for user, item, time in INTERACTIONS]
        ),
        "N.item": _lines(
            ["item_id:token\ttitle:token_seq\tcategories:token_seq"]
            + [f"{item}\t{title}\toutdoor, {item}" for item, title in TITLES.items()]
        ),
    }


def recbole_split() -> Files:
    """RecBole's N.test.inter with N.item2index and N.text."""
    tests = [f"{user}\t{' '.join(map(str, row[:-1]))}\t{row[-1]}" for user, row in SEQUENCES.items()]
    return {
        "N.test.inter": _lines(["user_id:token\titem_id_list:token_seq\titem_id:token", *tests]),
        "N.item2index": _lines(f"{item}\t{number}" for number, item in enumerate(ITEMS)),
        "N.text": _lines(
            ["item_id:token\ttext:token_seq"] + [f"{item}\t{title}. outdoor. Acme. " for item, title in TITLES.items()]
        ),
    }


def lcrec() -> Files:
    """LC-Rec's JSON files."""
    texts = {str(number): {"title": TITLES[item], "brand": "Acme", "categories": "outdoor", "description": ["a", "b"]}
             for number, item in enumerate(ITEMS)}  # fmt: skip
    return {
        "N.inter.json": json.dumps(SEQUENCES, indent=0).encode(),
        "N.item.json": json.dumps(texts, indent=0).encode(),
        "N.item2id": _lines(f"{item}\t{number}" for number, item in enumerate(ITEMS)),
    }


def lcrec_index() -> Files:
    """LC-Rec's index of semantic IDs."""
    index = {str(item): [f"<a_{item % 3}>", f"<b_{item % 2}>", f"<c_{item}>"] for item in range(len(ITEMS))}
    return {"N.index.json": json.dumps(index, indent=0).encode()}


def table_csv() -> Files:
    """Tables as csv; a title is quoted."""
    return {
        "interactions.csv": _lines(
            ["user_id,item_id,timestamp"] + [f"{user},{item},{time}" for user, item, time in INTERACTIONS]
        ),
        "items.csv": _lines(["item_id,title,brand"] + [f'{item},"{title}",Acme' for item, title in TITLES.items()]),
    }


def table_parquet() -> Files:
    """Tables as parquet."""
    users, items, times = zip(*INTERACTIONS, strict=True)
    return {
        "interactions.parquet": parquet({"user_id": list(users), "item_id": list(items), "timestamp": list(times)}),
        "items.parquet": parquet({"item_id": ITEMS, "title": list(TITLES.values())}),
    }


def amazon_2014() -> Files:
    """Amazon's reviews of 2014; the metadata are Python literals."""
    return {
        "reviews_N.json": _lines(
            json.dumps({"reviewerID": user, "asin": item, "unixReviewTime": time, "overall": 5.0})
            for user, item, time in INTERACTIONS
        ),
        "meta_N.json": _lines(
            str({"asin": item, "title": title, "brand": "Acme", "categories": [["Outdoor", item]]})
            for item, title in TITLES.items()
        ),
    }


def amazon_2023() -> Files:
    """Amazon's reviews of 2023 as JSON lines."""
    return {
        "N.jsonl": _lines(
            json.dumps({"user_id": user, "asin": "x", "parent_asin": item, "timestamp": time * 1000, "rating": 4.0})
            for user, item, time in INTERACTIONS
        ),
        "meta_N.jsonl": _lines(
            json.dumps({"parent_asin": item, "title": title, "store": "Acme", "description": ["a"], "categories": []})
            for item, title in TITLES.items()
        ),
    }


def amazon_csv() -> Files:
    """Amazon's reviews of 2023 as csv."""
    rows = [f"{user},{item},5.0,{time * 1000}" for user, item, time in INTERACTIONS]
    return {"N.csv": _lines(["user_id,parent_asin,rating,timestamp", *rows])}


def amazon_gzip() -> Files:
    """Gzipped reviews."""
    return {"N.jsonl.gz": gzip.compress(amazon_2023()["N.jsonl"], mtime=0)}


def movielens_100k() -> Files:
    """MovieLens 100K: u.data and u.item."""
    films = [f"{item}|{title}|01-Jan-1995||http://x|{'|'.join('0' * len(GENRES))}" for item, title in TITLES.items()]
    return {"u.data": _ratings("\t"), "u.item": _lines(films)}


def movielens_1m() -> Files:
    """MovieLens 1M and 10M: fields with :: between."""
    films = (f"{item}::{title}::Drama|War" for item, title in TITLES.items())
    return {"ratings.dat": _ratings("::"), "movies.dat": _lines(films)}


def movielens_csv() -> Files:
    """MovieLens 20M to 32M."""
    films = (f'{item},"{title}",Drama|War' for item, title in TITLES.items())
    return {
        "ratings.csv": b"userId,movieId,rating,timestamp\n" + _ratings(","),
        "movies.csv": b"movieId,title,genres\n" + _lines(films),
    }


def prompt() -> Files:
    """The prompt of a teacher that was tuned elsewhere."""
    return {"prompt.txt": b"Below is an instruction.\n\nThe user has bought {history}. What is next?\n\nResponse:\n"}


def histories() -> Files:
    """Histories for `recommend.py --file`."""
    return {"histories.txt": b'i1,i2,i3\n["i4", "i5"]\ni6\n'}


def parquet(columns: dict) -> bytes:
    """Write a table as a parquet file."""
    output = io.BytesIO()
    pq.write_table(pa.table(columns), output)
    return output.getvalue()


def _ratings(delimiter: str) -> bytes:
    return _lines(delimiter.join((user, item, "4", str(time))) for user, item, time in INTERACTIONS)


def _lines(rows) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()
