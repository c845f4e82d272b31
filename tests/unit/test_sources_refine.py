"""What is left out after reading: against brute force, and by hand."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import kcore_naive as naive

from distill.data.sources import Options, Source, group, numbered
from distill.data.sources.cleaning import clean_html
from distill.data.sources.refine import k_core, refine, repeated, without_short_users
from distill.runtime.errors import UserError

TEXTS = {"title": ["A", "B", "", "D"], "brand": ["", "x", " ", ""]}


def make(rows, items="abcd", texts=None, **options):
    """A source of rows (user, item, time, rating), as a reader makes it."""
    rows = [(*row, 0, 5)[:4] if len(row) == 2 else row for row in rows]
    users, named, times, ratings = ([row[column] for row in rows] for column in range(4))
    table = pa.table({"item_id": list(items), **(texts or {})})
    numbers = np.array([items.index(item) for item in named], dtype=int)
    return group(table, numbered(pa.array(users)), numbers, np.array(times), np.array(ratings), "here")


def listed(source):
    """User -> items."""
    ids = source.items["item_id"].to_pylist()
    rows = ["".join(ids[item] for item in source.values[a:b]) for a, b in pairwise(source.offsets)]
    return dict(zip(source.user_ids.to_pylist(), rows, strict=True))


pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=24)
cores = st.integers(0, 4)


@given(pairs, cores, cores)
@settings(max_examples=300, deadline=None)
def test_k_core(pairs, user_core, item_core):
    users, items = np.array(pairs, dtype=np.int32).reshape(-1, 2).T
    assert k_core(users, items, user_core, item_core).tolist() == naive.k_core(pairs, user_core, item_core)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=9), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_k_core_is_the_largest_set(pairs, user_core, item_core):
    users, items = np.array(pairs, dtype=np.int32).reshape(-1, 2).T
    assert k_core(users, items, user_core, item_core).tolist() == naive.largest(pairs, user_core, item_core)


def test_a_chain_falls_to_its_last_link():
    """u0-i0-u1-i1-…: in a 2-core the loose ends go first, then their neighbours, one round after the other."""
    chain = [(step // 2 + step % 2, step // 2) for step in range(40)]
    users, items = np.array(chain).T
    assert len(k_core(users, items, 2, 2)) == 0
    closed = np.append(users, 0), np.append(items, 19)
    closed[0][-1], closed[0][39] = 0, 0  # the last item leads back to the first user
    assert len(k_core(*closed, 2, 2)) == 41


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), max_size=30), st.booleans())
@settings(max_examples=100, deadline=None)
def test_repeated(rows, exact):
    source = make([(f"u{user}", "abcd"[item], time, 5) for user, item, time in rows])
    inside = zip(source.owners.tolist(), source.values.tolist(), source.times.tolist(), strict=True)
    assert repeated(source, "exact" if exact else "first").tolist() == naive.repeated(inside, exact)


@given(
    st.lists(
        st.tuples(st.sampled_from("uvw"), st.sampled_from("abcd"), st.integers(0, 3), st.integers(1, 5)), max_size=40
    ),
    st.sampled_from(["keep", "exact", "first"]),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([None, 3]),
)
@settings(max_examples=150, deadline=None)
def test_refine_by_definition_and_twice(rows, duplicates, user_core, item_core, min_rating):
    options = Options(duplicates=duplicates, user_core=user_core, item_core=item_core, min_rating=min_rating)
    order = {user: place for place, user in enumerate(dict.fromkeys(row[0] for row in rows))}
    expected = sorted(rows, key=lambda row: (order[row[0]], row[2]))  # stable
    expected = [row for row in expected if min_rating is None or row[3] >= min_rating]
    if duplicates != "keep":
        again = naive.repeated([row[:3] for row in expected], duplicates == "exact")
        expected = [row for row, repeats in zip(expected, again, strict=True) if not repeats]
    kept = naive.k_core([row[:2] for row in expected], user_core, item_core)
    wanted = {}
    for row in kept:
        wanted[expected[row][0]] = wanted.get(expected[row][0], "") + expected[row][1]
    source = make(rows)
    if rows and not wanted:
        with pytest.raises(UserError, match="nothing remains"):
            refine(source, options)
        return
    refined = refine(source, options)
    assert listed(refined) == wanted
    if item_core:
        assert set(refined.items["item_id"].to_pylist()) == set("".join(wanted.values()))
    else:
        assert refined.items is source.items
    again = refine(refined, options)
    assert listed(again) == wanted and again.items.equals(refined.items)


def test_without_text():
    source = make([("u", "c"), ("u", "a"), ("v", "c"), ("u", "d")], texts=TEXTS)
    dropped = refine(source, Options(empty_text="drop"))
    assert listed(dropped) == {"u": "ad"}
    assert dropped.items["item_id"].to_pylist() == ["a", "b", "d"]
    assert refine(make([("u", "c")]), Options(empty_text="drop")).items.num_rows == 4  # a source without texts
    # texts count after cleaning, and the k-core after both
    tagged = make([("u", "a"), ("u", "b"), ("v", "a"), ("v", "b"), ("v", "d")], texts={"title": ["A", "B", "", "<br>"]})
    options = Options(empty_text="drop", clean_html=True, user_core=2, item_core=2)
    assert listed(refine(tagged, options)) == {"u": "ab", "v": "ab"}
    with pytest.raises(UserError, match=r"none for item 'c' \(2 such items\)"):
        refine(tagged, Options(clean_html=True))


def test_needs_what_is_not_there():
    bare = Source(pa.table({"item_id": ["a"]}), pa.array(["u"]), np.zeros(2, int), np.array([0, 2]), origin="here")
    with pytest.raises(UserError, match="here: there are no ratings to compare with --min_rating 3"):
        refine(bare, Options(min_rating=3))
    with pytest.raises(UserError, match="here: there are no times to compare"):
        refine(bare, Options(duplicates="exact"))
    assert len(refine(bare, Options(duplicates="first")).values) == 1


def test_short_users():
    source = make([("u", "a"), ("v", "a"), ("u", "b"), ("u", "a"), ("v", "d")])
    assert listed(without_short_users(source, "drop", 3, "leave-one-out")) == {"u": "aba"}
    assert without_short_users(source, "error", 2, "global_cut") is source
    with pytest.raises(UserError, match="here: user 'v' has 2 interactions, leave-one-out needs at least 3"):
        without_short_users(source, "error", 3, "leave-one-out")
    with pytest.raises(UserError, match="no user with at least 4"):
        without_short_users(source, "drop", 4, "leave-one-out")


def test_numbered_in_order_of_appearance():
    """Whatever dictionary the file came with: sorted, in pieces, with ids that nobody uses, or plain numbers."""
    sorted_one = pa.DictionaryArray.from_arrays(pa.array([2, 0, 2], pa.int32()), ["a", "unused", "c"])
    pieces = pa.chunked_array([pa.array(["c", "a"]).dictionary_encode(), pa.array(["c", "b"]).dictionary_encode()])
    for column, ids, numbers in (
        (sorted_one, ["c", "a"], [0, 1, 0]),
        (pieces, ["c", "a", "b"], [0, 1, 0, 2]),
        (pa.array([7, 5, 7]), ["7", "5"], [0, 1, 0]),
        (pa.chunked_array([], pa.string()), [], []),
    ):
        found = numbered(column)
        assert found.dictionary.to_pylist() == ids and found.indices.to_pylist() == numbers
        assert found.dictionary.type == pa.string()
    with_null = pa.DictionaryArray.from_arrays(pa.array([2, None, 0], pa.int32()), ["a", "unused", "c"])
    assert numbered(with_null).to_pylist() == ["c", None, "a"]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("a<br/>b<br>c", "a b c"),
        ("<p class='x'>One\n two</p>\t<b>three</b>", "One two three"),
        ("size < 3 and > 1", "size < 3 and > 1"),
        ("I <3 R&D", "I <3 R&D"),
        ("&lt;b&gt;bold&lt;/b&gt;", "bold"),
        ("it&amp;#39;s &amp;amp; more", "it's & more"),
        ("x&nbsp;\u00a0y", "x y"),
        ("<script>var a = '<b>';</script>left <!-- no > --> over<style>p {}</style>", "left over"),
        ("&foo; &#xe9;", "&foo; é"),
        ("plain  text ", "plain text"),
        (None, ""),
        ("", ""),
    ],
)
def test_clean_html(text, plain):
    assert clean_html(pa.array([text, "a", text], pa.string())).to_pylist() == [plain, "a", plain]


@given(st.lists(st.text(st.sampled_from("<>/&;ab# !-\n"), max_size=20), max_size=5))
@settings(max_examples=100, deadline=None)
def test_clean_html_treats_each_text_alone(texts):
    together = clean_html(pa.chunked_array([texts, texts], pa.string())).to_pylist()
    alone = [clean_html(pa.array([text])).to_pylist()[0] for text in texts]
    assert together == alone * 2


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(-3, 3)), max_size=30),
    st.sampled_from([1.0, 0.5, 1e15, 1e18]),
)
@settings(max_examples=100, deadline=None)
def test_group_keeps_the_order_of_equal_times(rows, unit):
    """Whether or not user and time fit one sort key: fractions of a second and huge spans do not."""
    users = numbered(pa.array([f"u{user}" for user, _, _ in rows], pa.string()))
    numbers, times = np.array([row[1] for row in rows], int), np.array([row[2] * unit for row in rows])
    source = group(pa.table({"item_id": list("abcdefghij")}), users, numbers, times)
    expected = {}
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        expected[f"u{user}"] = expected.get(f"u{user}", "") + "abcdefghij"[item]
    assert listed(source) == expected
    assert source.user_ids.to_pylist() == list(dict.fromkeys(f"u{user}" for user, _, _ in rows))
