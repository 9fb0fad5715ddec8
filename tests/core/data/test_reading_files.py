from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import time
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from support.tables import settings

from fedsim.core.data import contents, table
from fedsim.core.errors import InputError

Write = Callable[..., str]
PLAIN = "age,city,y\n30,Rome,a\n40,Oslo,b\n50,Bonn,a\n"


def frame(path: str | Path, **more: object) -> pd.DataFrame:
    return table.read(settings(path, **more)).frame


def is_plain(read: pd.DataFrame) -> bool:
    return read["age"].tolist() == ["30", "40", "50"] and read["city"].tolist() == ["Rome", "Oslo", "Bonn"]


@pytest.mark.parametrize(
    "text",
    [
        "sep=,\n" + PLAIN,
        "\ufeff" + PLAIN,
        "sep=;\r\n" + PLAIN.replace(",", ";").replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        "# made by a machine\n#\n" + PLAIN,
        "#" + PLAIN,
        "Patients of 2024\n\n" + PLAIN,
        "Patients of 2024;;\n;;\n" + PLAIN.replace(",", ";"),
        PLAIN + "# the end\n",
        PLAIN.replace(",", "|"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace("age", '" age \n"'),
        PLAIN.replace("Rome", '"Rome"'),
        "\n\n" + PLAIN,
        PLAIN.replace(",", ", "),
    ],
)
def test_what_stands_around_a_table_is_no_record(write: Write, text: str) -> None:
    assert is_plain(frame(write(text)))


def test_line_breaks_in_a_header_are_blanks(write: Write) -> None:
    assert "age in years" in frame(write(PLAIN.replace("age", '"age\nin years"')))


def test_a_separator_can_be_declared(write: Write) -> None:
    assert is_plain(frame(write(PLAIN.replace(",", "^")), separator="^"))
    with pytest.raises(InputError, match=r"data.separator = '::'"):
        frame(write(PLAIN), separator="::")


def test_an_encoding_can_be_declared(write: Write) -> None:
    text = "город,y\nМосква,a\nОмск,b\n"
    assert frame(write(text.encode("cp1251")), encoding="cp1251")["город"].tolist() == ["Москва", "Омск"]
    with pytest.raises(InputError, match=r"data.encoding = 'utf-9': no such encoding"):
        frame(write(text), encoding="utf-9")
    with pytest.raises(InputError, match="does not fit"):
        frame(write(text.encode("cp1251")), encoding="utf-8")


def zipped(text: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("table.csv", text)
    return file.getvalue()


def zstd(text: bytes) -> bytes:
    return pa.Codec("zstd").compress(text, asbytes=True)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zipped, zstd])
def test_packed_tables_are_unpacked_within_bounds(
    write: Write, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(pack(PLAIN.encode()), "table.csv.packed")
    if pack is not zstd:  # a frame of the codec alone does not say how long it is
        assert is_plain(frame(path))
    monkeypatch.setattr(contents, "MAX_UNPACKED", 1000)
    with pytest.raises(InputError, match="it unpacks to more than"):
        frame(write(pack(PLAIN.encode() * 1000), "bomb.csv.packed"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100), "old Excel"),
        (b"$FL2@(#) SPSS DATA FILE", "SPSS"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"%PDF-1.4", "PDF"),
        (b"\x89PNG\r\n\x1a\n", "one image"),
        (b"\x93NUMPY\x01\x00", "NumPy"),
        (b"SQLite format 3\x00", "SQLite"),
        (b'{"a": 1}', "JSON"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (gzip.compress(b"RDX3\nX\n", mtime=0), "R file"),
        (gzip.compress(PLAIN.encode(), mtime=0)[:-20], "damaged"),
        (b"age,y\n1,\x00\x01\x02\n", "binary"),
        (b"PK\x03\x04" + bytes(50), "damaged"),
        (b"PAR1" + bytes(50) + b"PAR1", "cannot read"),
        (b'a,y\n"1,u\n2,v\n', ""),
    ],
)
def test_other_files_get_one_sentence_without_their_bytes(write: Write, content: bytes, words: str) -> None:
    with pytest.raises(InputError) as caught:
        frame(write(content, "t.csv"))
    assert words in str(caught.value) and str(caught.value).isprintable()


def test_what_never_ends_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.csv")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    (tmp_path / "empty").mkdir()
    start = time.monotonic()
    for name in ("fifo.csv", "loop.csv", "zero.csv", "empty", "none.csv", "x" * 300):
        with pytest.raises(InputError, match="cannot read") as caught:
            frame(tmp_path / name)
        assert "\n" not in str(caught.value)
        with pytest.raises(InputError, match="cannot read"):
            table.read_frame(tmp_path / name, settings(tmp_path / "other.csv"))
    assert time.monotonic() - start < 5


def test_a_folder_of_parquet_parts_is_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "t.parquet"
    folder.mkdir()
    whole = pd.DataFrame({"a": [1, 2, 3, 4], "y": ["u", "v", "u", "v"]})
    whole[:2].to_parquet(folder / "part-0.parquet")
    whole[2:][["y", "a"]].to_parquet(folder / "part-1.parquet")
    (folder / "_SUCCESS").write_text("")
    assert frame(folder)["a"].tolist() == [1, 2, 3, 4]
    whole[["a"]].to_parquet(folder / "part-2.parquet")
    with pytest.raises(InputError, match=r"part-2\.parquet: column 'y' is not in every part"):
        frame(folder)


def test_hive_folders_are_a_column(tmp_path: Path) -> None:
    whole = pd.DataFrame({"a": [1, 2, 3, 4], "site": ["n", "s", "n", "s"], "y": ["u", "v", "v", "u"]})
    whole.to_parquet(tmp_path / "t", partition_cols=["site"])
    read = table.read(settings(tmp_path / "t", party="site"))
    assert sorted(zip(read.frame["a"], table.texts(read.frame["site"]), strict=True)) == [
        (1, "n"), (2, "s"), (3, "n"), (4, "s")
    ]  # fmt: skip


def test_parquet_values_are_what_they_were(tmp_path: Path) -> None:
    big = 2**53 + 1
    columns = {
        "id": pa.array([big, None, big + 1], pa.int64()),
        "word": pa.array(["u", "v", "u"]).dictionary_encode(),
        "level": pa.array([10, 20, None]).dictionary_encode(),
        "money": pa.array([Decimal("1.25"), None, Decimal("3.00")]),
        "bytes": pa.array([b"x", b"y", None], pa.binary()),
        "raw": pa.array([b"\xff\xfe", b"\x00", b"y"], pa.binary()),
        "list": pa.array([[1], [2], []]),
        "span": pa.array([86_400_000, None, 43_200_000], pa.duration("ms")),
        "y": ["p", "q", "p"],
    }
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    read = table.read(settings(tmp_path / "t.parquet"))
    assert table.texts(read.frame["id"]).tolist() == [str(big), None, str(big + 1)]
    assert table.texts(read.frame["word"]).tolist() == ["u", "v", "u"]
    np.testing.assert_array_equal(table.numeric(read.frame["level"]), [10, 20, np.nan])
    np.testing.assert_array_equal(table.numeric(read.frame["money"]), [1.25, np.nan, 3])
    np.testing.assert_array_equal(table.numeric(read.frame["span"]), [1, np.nan, 0.5])
    assert table.texts(read.frame["bytes"]).tolist() == ["x", "y", None]
    assert "raw" not in read.frame and "list" not in read.frame
    assert sum("is no plain value" in notice for notice in read.notices) == 2


def test_named_levels_of_an_index_are_columns(tmp_path: Path) -> None:
    whole = pd.DataFrame({"a": [1.0, 2.0], "y": ["u", "v"]}, index=pd.Index(["n", "s"], name="site"))
    whole.to_parquet(tmp_path / "t.parquet")
    assert set(frame(tmp_path / "t.parquet")) == {"a", "y", "site"}
    whole.reset_index(drop=True).iloc[::-1].to_parquet(tmp_path / "u.parquet")
    assert set(frame(tmp_path / "u.parquet")) == {"a", "y"}


def test_excel_is_read_or_a_sentence(tmp_path: Path, write: Write) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["Patients"], [], ["age", "when", "city", "y"], [30, pd.Timestamp("1970-01-02"), "Rome", "a"],
                [41.5, pd.Timestamp("1970-01-03"), "Oslo", "b"], [None, None, "1,5", "a"]):  # fmt: skip
        book.active.append(row)
    book.create_sheet("more").append(["x"])
    book.save(tmp_path / "t.xlsx")
    read = table.read(settings(tmp_path / "t.xlsx"))
    np.testing.assert_array_equal(table.numeric(read.frame["age"]), [30, 41.5, np.nan])
    np.testing.assert_array_equal(table.numeric(read.frame["when"]), [1, 2, np.nan])
    assert read.frame["city"].tolist() == ["Rome", "Oslo", "1,5"]
    assert "sheet 'Sheet' was read, 1 other(s) were not" in " ".join(read.notices)
    with pytest.raises(InputError, match="damaged"):
        frame(write((tmp_path / "t.xlsx").read_bytes()[:2000], "cut.xlsx"))


def test_excel_without_openpyxl_is_a_sentence(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(InputError, match=r"pip install 'fedsim\[excel\]'"):
        frame(write(zipped(b""), "t.xlsx"))


def test_arrays_with_a_label_are_images_or_columns(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    pixels, label = draw.integers(0, 256, (30, 4, 5), dtype=np.uint8), draw.integers(0, 2, 30)
    np.savez(tmp_path / "t.npz", x=pixels, y=label, site=np.array(["n", "s"] * 15))
    read = table.read(settings(tmp_path / "t.npz", party="site"))
    assert read.schema.image == (1, 4, 5) and read.schema.columns[0].bounds == (0, 255)
    np.testing.assert_array_equal(read.frame[list(read.schema.names)].to_numpy(), pixels.reshape(30, 20))
    np.savez(tmp_path / "c.npz", x=draw.random((30, 4, 5, 3)), y=label)
    assert table.read(settings(tmp_path / "c.npz")).schema.image == (3, 4, 5)
    np.savez(tmp_path / "f.npz", x=draw.random((30, 3)), age=draw.random(30), y=label)
    assert table.read(settings(tmp_path / "f.npz")).schema.names == ("x[0]", "x[1]", "x[2]", "age")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((3, 2))}, "there is no array 'y'"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(4)}, "array 'x' has 3 records, 'y' has 4"),
        ({"y": np.zeros(4)}, "no features"),
        ({"x": np.array([{}, {}]), "y": np.zeros(2)}, "Python objects"),
        ({"x": np.zeros((2, 2)), "y": np.zeros((2, 2))}, "one value a record"),
    ],
)
def test_arrays_that_are_no_table_get_one_sentence(tmp_path: Path, arrays: dict, words: str) -> None:
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(InputError, match=words):
        frame(tmp_path / "t.npz")


def test_a_folder_of_images_with_a_table_or_folders_of_labels(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (6, 3, 4), dtype=np.uint8)
    (tmp_path / "f").mkdir()
    for k in range(6):
        image.fromarray(pixels[k]).save(tmp_path / "f" / f"i{k}.png")
        (tmp_path / "g" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels[k]).save(tmp_path / "g" / "ab"[k % 2] / f"i{k}.png")
    (tmp_path / "f" / "labels.csv").write_text(
        "file,y\n" + "".join(f"i{k}.png,{'ab'[k % 2]}\n" for k in range(6))
    )
    for folder, order in (("f", range(6)), ("g", [0, 2, 4, 1, 3, 5])):
        read = table.read(settings(tmp_path / folder))
        assert read.schema.image == (1, 3, 4)
        flat = read.frame[list(read.schema.names)].to_numpy()
        np.testing.assert_array_equal(flat, pixels[list(order)].reshape(6, 12))
        assert read.frame["y"].tolist() == ["ab"[k % 2] for k in order]
    image.fromarray(pixels[0, :2]).save(tmp_path / "f" / "i3.png")
    with pytest.raises(InputError, match=r"i3\.png: 4x2 pixels, the others have 4x3"):
        frame(tmp_path / "f")
    (tmp_path / "f" / "i3.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(InputError, match=r"cannot read .*i3\.png"):
        frame(tmp_path / "f")


@pytest.mark.parametrize(
    "text",
    [
        "6,148,72,35,0\n1,85,66,29,1\n8,183,64,0,1\n",
        "5.1,3.5,1.4,setosa\n4.9,3,1.4,setosa\n4.7,3.2,1.3,setosa\n",
        "63,M,145,c1,1\n37,M,130,c1,0\n41,F,130,c2,0\n",
    ],
)
def test_a_file_without_a_header_is_refused(write: Write, text: str) -> None:
    with pytest.raises(InputError, match="the first line is a record and no header"):
        frame(write(text))


def test_numbers_can_be_names(write: Write) -> None:
    assert list(frame(write("y,0,1,2,3\na,5,6,7,8\nb,6,7,8,9\na,1,2,3,4\n"))) == ["y", "0", "1", "2", "3"]
    assert "2019" in frame(write("y,name,2019,2020\na,u,5,6\nb,v,6,7\na,w,1,2\n"))


@pytest.mark.parametrize("last", ["Total,150,a\n", "Summe,150,\n", "3,120,96\n"])
def test_a_totals_row_is_refused(write: Write, last: str) -> None:
    rows = "".join(f"{k % 2},{30 + k % 3},{k % 2}\n" for k in range(6))
    words = last if not last.startswith("3,") else f"3,{sum(30 + k % 3 for k in range(6))},3\n"
    with pytest.raises(InputError, match="the last record"):
        frame(write("smoker,age,y\n" + rows + words))


def test_lines_that_end_too_early_are_said(write: Write) -> None:
    """What is missing at their ends reads like an empty cell, which is another thing."""
    path = write('age,city,y\n30,"Rome, IT",a\n\n40,Oslo\n50,Bonn,\n60\n70,"Bonn"\n80,Rome,b\n', "t.csv")
    source = table.read(settings(path))
    said = [notice for notice in source.owner_notices if "fewer fields" in notice]
    assert len(said) == 1 and "3 of 6 records" in said[0] and "record 2;" in said[0]
    whole = table.read(settings(write("age,city,y\n30,Rome,a\n40,Oslo,\n50,Bonn,b\n", "u.csv")))
    assert not any("fewer fields" in notice for notice in whole.owner_notices)
