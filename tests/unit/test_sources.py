"""Readers on tiny files whose contents can be checked by eye, and the simulator against its definition."""

import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.data.demo import catalogue, simulator
from distill.data.demo.simulator import Simulator
from distill.data.sources import FORMATS, Options, lcrec, reader, recbole, table
from distill.runtime.errors import UserError


def sequences(source):
    return [source.values[a:b].tolist() for a, b in pairwise(source.offsets)]


def stamps(source):
    return [source.times[a:b].tolist() for a, b in pairwise(source.offsets)]


def test_every_format_has_a_reader():
    for name in FORMATS:
        assert callable(reader(name).read) and callable(reader(name).files)


class TestRecBole:
    def split(self, folder, test="7\t2 0\t1\n8\t1 1 0\t2\n", text=None):
        (folder / "N.test.inter").write_text("user_id:token\titem_id_list:token_seq\titem_id:token\n" + test)
        (folder / "N.train.inter").write_text("not read")
        (folder / "N.item2index").write_text("A\t0\nB\t1\nC\t2\n")
        text = text or "C\tChair. Home Chairs. Acme. \nA\tApron 2.5 m. . Bo. \nB\tBowl, no parts\n"
        (folder / "N.text").write_text("item_id:token\ttext:token_seq\n" + text)
        return folder

    def test_split(self, tmp_path):
        source = recbole.read(self.split(tmp_path), Options())
        assert source.user_ids.to_pylist() == ["7", "8"]
        assert sequences(source) == [[2, 0, 1], [1, 1, 0, 2]]
        assert source.times is None
        assert source.items.to_pydict() == {
            "item_id": ["A", "B", "C"],
            "title": ["Apron 2.5 m", "Bowl, no parts", "Chair"],
            "categories": ["", "", "Home Chairs"],
            "brand": ["Bo", "", "Acme"],
        }

    def test_split_without_other_files_takes_items_as_they_come(self, tmp_path):
        self.split(tmp_path, "7\t\tx\n8\ty x\tz\n")
        (tmp_path / "N.item2index").unlink()
        (tmp_path / "N.text").unlink()
        source = recbole.read(tmp_path, Options())
        assert source.items.to_pydict() == {"item_id": ["x", "y", "z"]}
        assert sequences(source) == [[0], [1, 0, 2]]

    def test_index_need_not_be_sorted(self, tmp_path):
        self.split(tmp_path)
        (tmp_path / "N.item2index").write_text("C\t2\nA\t0\nB\t1\n")
        assert recbole.read(tmp_path, Options()).items["item_id"].to_pylist() == ["A", "B", "C"]

    @pytest.mark.parametrize(
        ("test", "text", "message"),
        [
            ("7\t2 0\n", None, "N.test.inter:2: malformed or cut off: expected 3 fields, got 2"),
            ("7\t2 0\t1\n\n8\t1 9\t2\n", None, "N.test.inter:4: unknown item '9': expected one of the 3 items"),
            ("7\t2 0\t1\n8\t1 0\t9\n", None, "N.test.inter:3: unknown item '9'"),
            ("7\t2 0\t1\n7\t1 0\t2\n", None, "N.test.inter:3: duplicate user id '7'"),
            ("7\t2 0\t\n", None, "N.test.inter:2: expected item id, got nothing"),
            ("7\t2 0\t1\n", "A\ta\nB\t \nC\tc\n", "N.text:3: expected a text for every item, found none for item 'B'"),
            ("7\t2 0\t1\n", "A\ta\nB\tb\n", r"N.text: expected a text .* 'C' \(1 such items\)"),
            ("7\t2 0\t1\n", "A\ta\nA\tb\nC\tc\n", "N.text:3: duplicate item id 'A'"),
        ],
    )
    def test_refusals(self, tmp_path, test, text, message):
        with pytest.raises(UserError, match=message):
            recbole.read(self.split(tmp_path, test, text), Options())

    def test_index_with_a_gap(self, tmp_path):
        self.split(tmp_path)
        (tmp_path / "N.item2index").write_text("A\t0\nC\t2\n")
        with pytest.raises(UserError, match="numbers 0 to 1, one a line; 1 is missing"):
            recbole.read(tmp_path, Options())

    def test_plain(self, tmp_path):
        header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        rows = "u\tb\t1\t30\nv\ta\t1\t5\nu\ta\t1\t10\nu\tc\t1\t30\n"
        (tmp_path / "N.inter").write_text(header + rows)
        (tmp_path / "N.item").write_text(
            'item_id:token\titem_name:token_seq\tclass:token_seq\na\tAn "a\tx\nz\tunsold\tx\nb\tB\ty\nc\tC\ty\n'
        )
        source = recbole.read(tmp_path, Options())
        assert source.user_ids.to_pylist() == ["u", "v"]
        assert source.items.to_pydict() == {
            "item_id": ["a", "b", "c"],
            "title": ['An "a', "B", "C"],
            "categories": ["x", "y", "y"],
        }
        assert sequences(source) == [[0, 1, 2], [0]]  # b before c: equal times keep the order of the file
        assert stamps(source) == [[10, 30, 30], [5]]

    def test_plain_bad_time(self, tmp_path):
        (tmp_path / "N.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nu\ta\t1\nu\tb\tnoon\n")
        with pytest.raises(UserError, match=r"N.inter:3: expected a timestamp in seconds, got 'noon'"):
            recbole.read(tmp_path, Options())

    def test_missing_column(self, tmp_path):
        (tmp_path / "N.inter").write_text("user:token\titem_id:token\nu\ta\n")
        with pytest.raises(UserError, match=r"N.inter:1: missing column 'user_id'. Did you mean 'user'"):
            recbole.read(tmp_path, Options())

    def test_missing_test_file(self, tmp_path):
        (tmp_path / "N.train.inter").write_text("")
        with pytest.raises(UserError, match=r"missing file \*.test.inter; found N.train.inter"):
            recbole.files(tmp_path, Options())

    def test_two_data_sets(self, tmp_path):
        for name in ("A.inter", "B.inter"):
            (tmp_path / name).write_text("user_id:token\titem_id:token\nu\ta\n")
        with pytest.raises(UserError, match=r"expected one file .* found A.inter, B.inter"):
            recbole.files(tmp_path, Options())


class TestLCRec:
    def write(self, folder, inter='{\n"0": [1, 0, 2],\n"1": [2, 2]\n}', items=None, ids="A\t0\nB\t1\nC\t2\n"):
        (folder / "N.inter.json").write_text(inter)
        (folder / "N.index.json").write_text("not read")
        if ids:
            (folder / "N.item2id").write_text(ids)
        if items:
            (folder / "N.item.json").write_text(json.dumps(items))
        return folder

    def test_without_texts(self, tmp_path):
        source = lcrec.read(self.write(tmp_path), Options())
        assert source.user_ids.to_pylist() == ["0", "1"]
        assert sequences(source) == [[1, 0, 2], [2, 2]]
        assert source.items.to_pydict() == {"item_id": ["A", "B", "C"]}

    def test_with_texts(self, tmp_path):
        items = {
            "1": {"title": "b", "brand": None},
            "0": {"title": "a", "description": ["x", "y"], "categories": "c"},
            "2": {"description": "d"},
            "3": {"title": "sold elsewhere"},
        }
        source = lcrec.read(self.write(tmp_path, items=items), Options())
        assert source.items.to_pydict() == {
            "item_id": ["A", "B", "C"],
            "title": ["a", "b", ""],
            "description": ["x, y", "", "d"],
            "brand": ["", "", ""],
            "categories": ["c", "", ""],
        }

    def test_numbers_serve_as_ids(self, tmp_path):
        source = lcrec.read(self.write(tmp_path, ids=None), Options())
        assert source.items["item_id"].to_pylist() == ["0", "1", "2"]

    @pytest.mark.parametrize(
        ("inter", "message"),
        [
            ('{\n"0": [1,\n', "N.inter.json:3: cut off or no JSON"),
            (
                '{\n"0": [1, 0],\n"7": [2, 3]\n}',
                "N.inter.json:3: user '7' names the unknown item 3: expected",
            ),
            ('{\n"0": [-1, 0]\n}', "N.inter.json:2: user '0' names the unknown item -1"),
            ('{\n"0": [1, 0],\n"0": [2]\n}', "N.inter.json:3: duplicate key '0'"),
            ('{\n"0": [1, "x"]\n}', "N.inter.json:2: expected a list of item numbers for user '0'"),
            ("[1, 2]", "expected an object"),
        ],
    )
    def test_refusals(self, tmp_path, inter, message):
        with pytest.raises(UserError, match=message):
            lcrec.read(self.write(tmp_path, inter), Options())

    def test_blank_text(self, tmp_path):
        self.write(tmp_path, items={"0": {"title": "a"}, "1": {"title": " "}})
        with pytest.raises(UserError, match=r"N.item.json:1: .* none for item 'B' \(2 such items\)"):
            lcrec.read(tmp_path, Options())
        assert lcrec.read(tmp_path, Options(empty_text="keep")).items["title"].to_pylist() == ["a", "", ""]

    def test_duplicate_item(self, tmp_path):
        with pytest.raises(UserError, match=r"N.item2id:2: duplicate item id 'A'"):
            lcrec.read(self.write(tmp_path, ids="A\t0\nA\t1\nC\t2\n"), Options())


class TestTable:
    def test_csv(self, tmp_path):
        (tmp_path / "interactions.csv").write_text(
            "when,who,what,stars\n2024-01-02,u,a,1\n2024-01-01,u,b,1\n1970-01-01 00:01:00,v,a,1\n2024-01-02,u,c,1\n"
        )
        (tmp_path / "items.csv").write_text('what,title,price\nc,"a ""C"", with\ntwo lines",1\na,A,2\nb,B,3\n')
        options = Options(user_column="who", item_column="what", time_column="when")
        source = table.read(tmp_path, options)
        assert source.user_ids.to_pylist() == ["u", "v"]
        assert sequences(source) == [[2, 1, 0], [1]]
        assert stamps(source) == [[1704067200, 1704153600, 1704153600], [60]]
        assert source.items.to_pydict() == {"item_id": ["c", "a", "b"], "title": ['a "C", with\ntwo lines', "A", "B"]}

    def test_parquet_without_items(self, tmp_path):
        columns = {"user_id": [5, 5, 6], "item_id": [9, 8, 9], "timestamp": [2.5, 1.0, 0.0]}
        pq.write_table(pa.table(columns), tmp_path / "clicks.parquet")
        source = table.read(tmp_path / "clicks.parquet", Options())
        assert source.items.to_pydict() == {"item_id": ["9", "8"]}
        assert source.user_ids.to_pylist() == ["5", "6"]
        assert sequences(source) == [[1, 0], [0]]
        assert stamps(source) == [[1, 2], [0]]

    def test_parquet_dates(self, tmp_path):
        times = pa.array([2000, 1000], pa.timestamp("ms", "UTC"))
        pq.write_table(
            pa.table({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": times}),
            tmp_path / "interactions.parquet",
        )
        source = table.read(tmp_path, Options())
        assert sequences(source) == [[1, 0]] and stamps(source) == [[1, 2]]

    def test_rows_in_time_order(self, tmp_path):
        (tmp_path / "interactions.tsv").write_text("user_id\titem_id\nu\tb\nv\ta\nu\ta\n")
        source = table.read(tmp_path, Options(time_column=None))
        assert source.times is None
        assert sequences(source) == [[0, 1], [1]]

    @pytest.mark.parametrize(
        ("interactions", "items", "message"),
        [
            ("user_id,item_id\nu,a\n", None, "missing column 'timestamp'.*Name it with --time_column"),
            ("user,item_id,timestamp\nu,a,1\n", None, "missing column 'user_id'. Did you mean 'user'.*--user_column"),
            ("user_id,item_id,timestamp\nu,a,1\nu,a\n", None, "interactions.csv:3: malformed or cut off"),
            ("user_id,item_id,timestamp\nu,a,1\nu,a,soon\n", None, "interactions.csv:3: expected a time.*'soon'"),
            ("user_id,item_id,timestamp\nu,a,1\n,a,2\n", None, "interactions.csv:3: expected user id, got nothing"),
            ("user_id,item_id,timestamp\nu,b,1\n", "item_id,title\na,A\n", "interactions.csv:2: unknown item 'b'"),
            ("user_id,item_id,timestamp\nu,a,1\n", "item_id,title\na,A\na,B\n", "items.csv:3: duplicate item id 'a'"),
            ("user_id,item_id,timestamp\nu,a,1\n", "item_id,title\na,\n", "items.csv:2: expected a text"),
            ("user_id,item_id,timestamp\nu,a,1\n", "item_id,price\na,1\n", "items.csv: expected a column of texts"),
            ("", None, "interactions.csv:1: expected a header"),
        ],
    )
    def test_refusals(self, tmp_path, interactions, items, message):
        (tmp_path / "interactions.csv").write_text(interactions)
        if items:
            (tmp_path / "items.csv").write_text(items)
        with pytest.raises(UserError, match=message):
            table.read(tmp_path, Options())

    def test_truncated_parquet(self, tmp_path):
        path = tmp_path / "interactions.parquet"
        pq.write_table(pa.table({"user_id": ["u"], "item_id": ["a"], "timestamp": [1]}), path)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(UserError, match=r"interactions.parquet is not a readable parquet file"):
            table.read(tmp_path, Options())

    def test_missing_input(self, tmp_path):
        with pytest.raises(UserError, match="No folder"):
            table.files(tmp_path / "none", Options())


@pytest.fixture(scope="module")
def many():
    return TestSimulator.shop.sample(10_000, seed=0)


class TestSimulator:
    shop = Simulator.build(seed=3)

    def reference(self, history):
        """One step, straight from the definition."""
        shop, weights = self.shop, self.shop.weights
        history = list(history)[-20:]
        if not history:
            return list(shop.popularity)
        ages = range(len(history) - 1, -1, -1)
        total = sum(0.7**age for age in ages)
        department, line = [0.0] * 6, [0.0] * 10
        for item, age in zip(history, ages, strict=True):
            line[shop.lines[item]] += 0.7**age / total
            for to in range(6):
                department[to] += 0.7**age / total * shop.drift[shop.departments[item], to]
        interest = [
            department[shop.departments[item]] * line[shop.lines[item]] * shop.popularity[item] ** 0.5
            for item in range(shop.n_items)
        ]
        result = []
        for item in range(shop.n_items):
            probability = 0.35 * interest[item] / sum(interest) + 0.12 * shop.popularity[item] + 0.08 / shop.n_items
            probability += weights.complement * self.tie(history[-1], item)
            result.append(0.0 if item in history else probability)
        return [probability / sum(result) for probability in result]

    def tie(self, last, item):
        """Share of `item` among the companions of `last`, straight from the definition."""
        shop = self.shop
        companions = catalogue.product_types()[shop.types[last]].companions
        if shop.types[item] not in companions:
            return 0.0

        def pull(other):
            line, own = shop.lines[other], shop.lines[last]
            close = 1.0 if line == own else 0.3 if line // 2 == own // 2 else 0.05
            return close * shop.popularity[other] ** 0.5

        rivals = [other for other in range(shop.n_items) if shop.types[other] == shop.types[item]]
        share = (0.7, 0.3)[companions.index(shop.types[item])]
        return share * pull(item) / sum(pull(other) for other in rivals)

    def padded(self, histories, width):
        result = np.full((len(histories), width), -1)
        for row, history in enumerate(histories):
            result[row, : len(history)] = history
        return result

    def test_agrees_with_the_definition(self):
        rng = np.random.default_rng(0)
        histories = [rng.permutation(600)[:length] for length in (0, 1, 2, 7, 20, 23, 26)]
        # The closest companion of the last item is already bought: its mass goes to all others.
        histories.append(np.array([self.shop.ties[5].argmax(), 5]))
        found = self.shop.next_item_probabilities(self.padded(histories, 26))
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, [self.reference(history) for history in histories], rtol=1e-9)

    def test_probabilities(self):
        sequences = self.shop.sample(200, seed=1)
        found = self.shop.next_item_probabilities(self.padded(sequences, 21)[:, :20])
        np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)
        assert (found >= 0).all()
        for row, sequence in zip(found, sequences, strict=True):
            assert (row[sequence[:20]] == 0).all()
            assert (row == 0).sum() == min(len(sequence), 20)

    def test_width_of_the_padding_does_not_matter(self):
        history = np.array([[4, 9, 17]])
        wide = np.array([[4, 9, 17] + [-1] * 40])
        np.testing.assert_array_equal(
            self.shop.next_item_probabilities(history), self.shop.next_item_probabilities(wide)
        )

    def test_sequences(self):
        sequences = self.shop.sample(3000, seed=0)
        lengths = np.array([len(sequence) for sequence in sequences])
        assert lengths.min() == 5 and lengths.max() == 21
        assert 8.5 < lengths.mean() < 9.2
        assert all(len(set(sequence.tolist())) == len(sequence) for sequence in sequences)

    def test_samples_follow_the_distribution(self, many):
        # The sum over all users of (bought - expected)^2 / expected, by item, is near the number of items.
        for step in (0, 1, 4):
            histories = np.array([sequence[:step] for sequence in many])
            expected = np.zeros(600)
            for block in np.array_split(np.arange(10_000), 10):
                expected += self.shop.next_item_probabilities(histories[block]).sum(0)
            counts = np.bincount([sequence[step] for sequence in many], minlength=600)
            statistic = ((counts - expected) ** 2 / expected).sum()
            assert abs(statistic - 600) < 5 * np.sqrt(2 * 600), step

    def test_samples_follow_the_history(self, many):
        histories = np.array([sequence[:3] for sequence in many])
        last, following = histories[:, -1], np.array([sequence[3] for sequence in many])
        closest = self.shop.ties.argmax(1)[last]
        hit = following == closest
        chance = np.concatenate(
            [
                self.shop.next_item_probabilities(histories[block])[np.arange(len(block)), closest[block]]
                for block in np.array_split(np.arange(10_000), 10)
            ]
        )
        assert abs(hit.sum() - chance.sum()) < 4 * np.sqrt((chance * (1 - chance)).sum())

    def test_seeds(self):
        again = Simulator.build(seed=3)
        assert again.items_table().equals(self.shop.items_table())
        for one, other in zip(again.sample(50, seed=1), self.shop.sample(50, seed=1), strict=True):
            np.testing.assert_array_equal(one, other)
        first, second = (np.concatenate(self.shop.sample(50, seed=seed)) for seed in (1, 2))
        assert first.tolist() != second.tolist()
        assert not Simulator.build(seed=4).items_table().equals(self.shop.items_table())

    def test_catalogue(self):
        items = self.shop.items_table().to_pylist()
        assert len(items) == 600 and len({item["item_id"] for item in items}) == 600
        assert all(item["title"] and item["description"] and item["brand"] for item in items)
        assert len({item["categories"] for item in items}) == 60
        named = 0
        for number, item in enumerate(items):
            kind = catalogue.product_types()[self.shop.types[number]]
            line = catalogue.LINES[self.shop.lines[number]]
            text = (item["title"] + " " + item["description"]).lower()
            assert line.lower() in text
            assert kind.name in text or kind.synonym.lower() in text or kind.name.lower() in text
            assert self.shop.types[self.shop.ties[number].argmax()] in kind.companions
            named += f"{line} {catalogue.product_types()[kind.companions[0]].name}" in item["description"]
        assert 450 < named < 570

    def test_save_and_load(self, tmp_path):
        self.shop.save(tmp_path)
        loaded = Simulator.load(tmp_path)
        histories = np.array([[1, 2, 3]])
        np.testing.assert_array_equal(
            loaded.next_item_probabilities(histories), self.shop.next_item_probabilities(histories)
        )
        (tmp_path / "again").mkdir()
        loaded.save(tmp_path / "again")
        assert (tmp_path / "again" / simulator.FILE).read_bytes() == (tmp_path / simulator.FILE).read_bytes()
        assert loaded.weights == self.shop.weights
        assert loaded.items_table().equals(self.shop.items_table())

    def test_refusals(self, tmp_path):
        with pytest.raises(UserError, match="multiple of 60"):
            Simulator.build(0, n_items=100)
        with pytest.raises(UserError, match="negative"):
            Simulator.build(-1)
        with pytest.raises(UserError, match="only demo data sets"):
            Simulator.load(tmp_path)
        self.shop.save(tmp_path)
        path = tmp_path / simulator.FILE
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(UserError, match="damaged"):
            Simulator.load(tmp_path)

    def test_a_small_shop(self):
        shop = Simulator.build(0, n_items=60)
        assert all(len(set(sequence.tolist())) == len(sequence) for sequence in shop.sample(100, seed=0))


def test_the_demos_times():
    """They rise within a user, start within two years, and leave sequences as they are."""
    source = reader("demo").read(None, Options(users=300))
    assert all((np.diff(row) > 0).all() for row in stamps(source))
    first = np.array([row[0] for row in stamps(source)])
    assert first.min() >= 1672531200 and 600 < (first.max() - 1672531200) / 86400 < 730
    gaps = np.concatenate([np.diff(row) for row in stamps(source)]) / 86400
    assert abs(gaps.mean() - 14) < 1
    again = Simulator.build(0).sample(300, 0)
    assert sequences(source) == [row.tolist() for row in again]
