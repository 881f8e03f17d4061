"""Files that differ, filters, filesystems: what a reader hands on, and how little it reads for it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from lightning_intune.errors import ConfigError
from lightning_intune.flow import ParquetSource
from lightning_intune.flow.row_groups import RowGroupReadError
from tests.source.files import write_folder


def read(source: ParquetSource, **settings: Any) -> pa.Table:
    function = source.reader(**settings)
    return pa.concat_tables([function(row_group) for row_group in source])


# ---- columns ----


def test_only_the_asked_columns_come_and_in_the_asked_order(tmp_path: Path) -> None:
    write_folder(tmp_path, [[2]])
    source = ParquetSource(tmp_path, columns=["text", "n"])
    assert read(source).schema == source.arrow_schema == pa.schema({"text": pa.string(), "n": pa.int64()})


def test_a_column_that_came_later_is_null_before_or_its_default(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"a": [2], "b": ["x"]}), tmp_path / "1.parquet")
    assert read(ParquetSource(tmp_path))["b"].to_pylist() == [None, "x"]
    assert read(ParquetSource(tmp_path, defaults={"b": "none"}))["b"].to_pylist() == ["none", "x"]
    assert read(ParquetSource(tmp_path, defaults={"b": "none"}), dictionaries=True)["b"].to_pylist() == ["none", "x"]


def test_a_default_stands_in_for_a_missing_column_not_for_a_null(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2], "b": [None, 5]}), tmp_path / "0.parquet")
    assert read(ParquetSource(tmp_path, defaults={"b": 9}))["b"].to_pylist() == [None, 5]


def test_numbers_widen_to_what_holds_them_in_every_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([1], pa.int8())}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"a": pa.array([2**40], pa.int64())}), tmp_path / "1.parquet")
    table = read(ParquetSource(tmp_path))
    assert table.schema == pa.schema({"a": pa.int64()})
    assert table["a"].to_pylist() == [1, 2**40]


def test_columns_in_another_order_are_put_right(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"b": [4], "a": [3]}), tmp_path / "1.parquet")
    assert read(ParquetSource(tmp_path)).to_pylist() == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()], ids=str)
def test_dictionaries_hold_the_same_values_whatever_the_file_stores(tmp_path: Path, kind: pa.DataType) -> None:
    texts = pa.array(["b", None, "a", "b"]).cast(kind)
    pq.write_table(pa.table({"text": texts}), tmp_path / "0.parquet", row_group_size=2)
    pq.write_table(pa.table({"text": texts}), tmp_path / "1.parquet", use_dictionary=False)
    pq.write_table(pa.table({"text": texts.dictionary_encode()}), tmp_path / "2.parquet", store_schema=False)
    coded = read(ParquetSource(tmp_path), dictionaries=True)
    assert coded["text"].type.index_type == pa.int32()
    assert coded["text"].cast(kind).to_pylist() == texts.to_pylist() * 3


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()], ids=str)
def test_lists_of_texts_stay_dictionaries_whatever_the_file_stores(tmp_path: Path, kind: pa.DataType) -> None:
    lists = [["b", "a"], None, [], ["a", None]]
    for number, made in enumerate((pa.list_(kind), pa.large_list(kind), pa.list_(pa.dictionary(pa.int32(), kind)))):
        rows = pa.table({"text": pa.array(lists).cast(made), "n": range(4)})
        pq.write_table(rows, tmp_path / f"{number}.parquet", row_group_size=2, store_schema=False)
    plain, coded = read(ParquetSource(tmp_path)), read(ParquetSource(tmp_path), dictionaries=True)
    assert coded["text"].type.value_type == pa.dictionary(pa.int32(), plain["text"].type.value_type)
    assert coded.num_rows == 12
    assert coded["text"].to_pylist() == plain["text"].to_pylist()
    assert coded.take(pa.array([9, 0, 5]))["text"].to_pylist() == plain.take(pa.array([9, 0, 5]))["text"].to_pylist()


def test_a_missing_column_of_texts_is_null_among_dictionaries_too(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"a": [2], "b": [["x"]]}), tmp_path / "1.parquet")
    assert read(ParquetSource(tmp_path), dictionaries=True)["b"].to_pylist() == [None, ["x"]]


# ---- filters ----

FILTERS = st.sampled_from(
    [
        pc.field("n") >= 13,
        (pc.field("n") < 4) | (pc.field("text") == "t1"),
        pc.field("text").isin(["t0", "t2"]),
        pc.field("n") == 22,
    ]
)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("numbered")
    write_folder(folder, [[5, 5], [5, 5, 5]])
    return folder


@given(keep=FILTERS, columns=st.sampled_from([None, ["n"], ["text"]]))
def test_a_filter_keeps_what_arrow_keeps_even_by_columns_not_asked_for(
    numbered: Path, keep: pc.Expression, columns: list[str] | None
) -> None:
    want = pq.read_table(numbered).filter(keep)
    got = read(ParquetSource(numbered, columns=columns, filters=keep))
    assert got.to_pylist() == want.select(columns or want.column_names).to_pylist()


def test_row_groups_that_statistics_rule_out_are_not_even_described(numbered: Path) -> None:
    # Rows 0..24 in groups of five; n >= 13 leaves those that begin at 10, 15 and 20.
    source = ParquetSource(numbered, filters=[("n", ">=", 13)])
    assert [(Path(group.path).name, group.row_group) for group in source] == [
        ("1.parquet", 0),
        ("1.parquet", 1),
        ("1.parquet", 2),
    ]
    assert source.num_rows == 15


def test_a_filter_on_a_column_that_a_file_lacks_drops_that_files_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"a": [2, 3], "b": [7, 8]}), tmp_path / "1.parquet")
    assert read(ParquetSource(tmp_path, columns=["a"], filters=pc.field("b") > 7)).to_pylist() == [{"a": 3}]


# ---- places ----


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_folder(tmp_path / "day=1", [[1], [1]])
    write_folder(tmp_path / "day=2" / "deep", [[1]])
    (tmp_path / "day=1" / "_SUCCESS").write_text("")
    (tmp_path / "day=1" / ".0.parquet.crc").write_text("x")
    (tmp_path / "_tmp").mkdir()
    (tmp_path / "_tmp" / "half.parquet").write_text("half")
    return tmp_path


@pytest.mark.parametrize(
    ("paths", "want"),
    [
        ("", ["day=1/0", "day=1/1", "day=2/deep/0"]),
        ("day=1", ["day=1/0", "day=1/1"]),
        ("day=1/", ["day=1/0", "day=1/1"]),
        ("day=1/1.parquet", ["day=1/1"]),
        ("day=1/*.parquet", ["day=1/0", "day=1/1"]),
        ("*/0.parquet", ["day=1/0"]),
        ("day=[12]/**/0.parquet", ["day=1/0", "day=2/deep/0"]),
        ("day*/**", ["day=1/0", "day=1/1", "day=1/_SUCCESS", "day=2/deep/0"]),
        (["day=2", "day=1/?.parquet"], ["day=2/deep/0", "day=1/0", "day=1/1"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("place", ["local", "arrow", "fsspec", "uri"])
def test_folders_globs_and_lists_mean_the_same_files_everywhere(
    tree: Path, paths: str | list[str], want: list[str], place: str
) -> None:
    from lightning_intune.flow.filesystems import locate
    from lightning_intune.flow.parquet_files import find_files

    listed = [paths] if isinstance(paths, str) else paths
    if place == "arrow":
        located, filesystem = locate(listed, fs.SubTreeFileSystem(str(tree), fs.LocalFileSystem()))
    elif place == "fsspec":
        located, filesystem = locate([f"{tree}/{path}" for path in listed], fsspec.filesystem("file"))
    else:
        head = "file://" if place == "uri" else ""
        located, filesystem = locate([f"{head}{tree}/{path}" for path in listed])
    found = [
        file.removeprefix(str(tree)).strip("/").removesuffix(".parquet") for file in find_files(located, filesystem)
    ]
    assert found == want


def test_a_relative_glob_is_taken_from_the_working_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "day=1")
    assert ParquetSource("*.parquet").num_rows == 2
    assert [group.path for group in ParquetSource("*.parquet")] == ["0.parquet", "1.parquet"]


@pytest.mark.parametrize("path", [".data/clicks", ".data/clicks/", ".data/*/*.parquet", "./.data/clicks"])
def test_fsspecs_local_files_are_found_below_a_hidden_relative_folder(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".data" / "clicks").mkdir(parents=True)
    write_folder(tmp_path / ".data" / "clicks", [[1], [2]])
    (tmp_path / ".data" / "clicks" / "_SUCCESS").write_text("")
    assert ParquetSource(path, filesystem=fsspec.filesystem("file")).num_rows == 1 + 2


def test_a_filesystem_that_only_fsspec_knows_is_read_by_uri() -> None:
    memory = fsspec.filesystem("memory")
    with memory.open("/shop/0.parquet", "wb") as file:
        pq.write_table(pa.table({"n": [1, 2]}), file)
    try:
        for paths in ("memory://shop", "memory://shop/*.parquet", "memory://shop/0.parquet"):
            assert read(ParquetSource(paths))["n"].to_pylist() == [1, 2]
    finally:
        memory.rm("/shop", recursive=True)


def test_many_files_are_opened_side_by_side_and_stay_in_order(tmp_path: Path) -> None:
    write_folder(tmp_path, [[1]] * 30)
    names = [Path(group.path).name for group in ParquetSource(tmp_path)]
    assert names == sorted(f"{i}.parquet" for i in range(30))


class CountingHandler(fs.FSSpecHandler):
    """Counts the reads that reach storage."""

    num_reads = 0

    def open_input_file(self, path: str) -> Any:
        handler = self

        class File:
            def __init__(self) -> None:
                self.file = open(path, "rb")  # noqa: SIM115 - Arrow closes it

            def read(self, size: int = -1) -> bytes:
                handler.num_reads += 1
                return self.file.read(size)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

        return pa.PythonFile(File(), mode="r")


def count_reads(folder: Path, *, pre_buffer: bool) -> int:
    handler = CountingHandler(fsspec.filesystem("file"))
    source = ParquetSource(str(folder), filesystem=fs.PyFileSystem(handler))
    function, row_groups = source.reader(pre_buffer=pre_buffer), list(source)
    function(row_groups[0])  # the footer is read once, here
    before = handler.num_reads
    function(row_groups[1])
    return handler.num_reads - before


def test_a_wide_row_group_is_fetched_in_few_ranges_where_reads_are_dear(tmp_path: Path) -> None:
    columns = {f"c{i}": list(range(2_000)) for i in range(40)}
    pq.write_table(pa.table(columns), tmp_path / "0.parquet", row_group_size=1_000)
    assert count_reads(tmp_path, pre_buffer=False) >= 40
    assert count_reads(tmp_path, pre_buffer=True) <= 2


def test_a_reader_works_after_pickling_as_a_process_lane_needs(tmp_path: Path) -> None:
    write_folder(tmp_path, [[3]])
    source = ParquetSource(tmp_path, filters=pc.field("n") > 0, shuffle=True)
    [group] = source
    function = source.reader(dictionaries=True)
    function(group)
    again = pickle.loads(pickle.dumps(function))
    assert again(pickle.loads(pickle.dumps(group))).equals(function(group))


# ---- mistakes, before any worker starts ----


def test_no_data_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "_SUCCESS").write_text("")
    write_folder(tmp_path / "no_rows", [[0], []])
    write_folder(tmp_path / "rows", [[2]])
    cases = {
        "empty": "holds no file",
        "hidden": "'_' or '.' do not count",
        "nowhere": "there is no file or folder",
        "rows/*.csv": "matches no file",
        "nowhere/*.parquet": "matches no file",
        "no_rows": "2 files hold no row",
    }
    for path, words in cases.items():
        with pytest.raises(ConfigError, match=words.replace("*", r"\*").replace(".", r"\.")):
            ParquetSource(tmp_path / path)


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n1,2\n", b"PAR1" + b"\0" * 60 + b"PAR1"], ids=["empty", "csv", "damaged"]
)
def test_a_file_that_is_not_parquet_is_named(tmp_path: Path, content: bytes) -> None:
    write_folder(tmp_path, [[2]])
    (tmp_path / "zz.parquet").write_bytes(content)
    with pytest.raises(ConfigError, match=r"zz\.parquet' is not a readable Parquet file"):
        ParquetSource(tmp_path)


def test_types_that_no_type_holds_both_name_the_column_and_both_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": [1]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "1.parquet")
    with pytest.raises(ConfigError, match=r"column 'b' holds int64 in '.*0\.parquet' and string in '.*1\.parquet'"):
        ParquetSource(tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"columns": ["txt"]}, "no column 'txt' .did you mean 'text'"),
        ({"columns": []}, "is empty or names a column twice"),
        ({"columns": ["n", "n"]}, "is empty or names a column twice"),
        ({"columns": "n"}, r"columns='n' is a text"),
        ({"world_size": 0}, "world_size=0 leaves no rank"),
        ({"world_size": -2}, "world_size=-2 leaves no rank"),
        ({"rank": 2, "world_size": 2}, "rank=2 is not among the 2 ranks"),
        ({"rank": -1}, "rank=-1 is not among"),
        ({"seed": -1}, "seed=-1 is negative"),
        ({"filters": pc.field("m") > 1}, "does not fit the data"),
        ({"filters": pc.field("text") > 1}, "does not fit the data"),
        ({"filters": [("n", "~", 1)]}, "is not understood"),
        ({"filters": 7}, "is not understood"),
        ({"filters": pc.field("n") > 99}, "no row that the filters let through"),
        ({"defaults": {"m": 1}}, "no column 'm'"),
        ({"defaults": {"n": "x"}}, "the value 'x', and it holds int64"),
        ({"filesystem": "s3"}, "neither a pyarrow.fs.FileSystem nor"),
    ],
    ids=lambda value: str(value).splitlines()[0],
)
def test_settings_that_make_no_sense_are_refused_at_construction(numbered: Path, settings: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ParquetSource(numbered, **settings)


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ([], "empty list"),
        (["nosuchscheme://x"], "nothing here can read"),
        (["memory://a/x.parquet", "/b/x.parquet"], "several filesystems"),
    ],
    ids=["none", "scheme", "mixed"],
)
def test_paths_that_mean_no_one_place_are_refused(paths: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ParquetSource(paths)


def test_a_file_named_twice_would_give_its_rows_twice_and_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, [[2]])
    with pytest.raises(ConfigError, match="more than one of the paths"):
        ParquetSource([tmp_path, tmp_path / "0.parquet"])


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "0.parquet")
    with pytest.raises(ConfigError, match="two columns named 'a'"):
        ParquetSource(tmp_path)


# ---- failures midway ----


@pytest.mark.parametrize("happened", ["damaged", "gone", "replaced"])
def test_a_read_that_fails_names_file_and_row_group(tmp_path: Path, happened: str) -> None:
    write_folder(tmp_path, [[400, 400]])
    source = ParquetSource(tmp_path)
    _, second = source
    path = tmp_path / "0.parquet"
    if happened == "gone":
        path.unlink()
    elif happened == "replaced":
        write_folder(tmp_path, [[400, 2]])
    else:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] + b"\xff" * 200 + whole[len(whole) // 2 + 200 :])
    with pytest.raises(RowGroupReadError, match=r"row group 1 of '.*0\.parquet' cannot be read"):
        source.reader()(second)
