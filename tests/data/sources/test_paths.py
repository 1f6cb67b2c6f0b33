"""Paths and patterns as people write them: brackets and braces in names, counts without end, other systems' paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from openblip.data.sources.open import DataSource, read_source
from openblip.data.sources.paths import MOST_FILES, expand_pattern
from openblip.data.sources.tables import read_table
from openblip.errors import OpenBlipError
from openblip.images.sources import find_images
from tests.data.tiny_images import put


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_braces_count_as_shells_do(tmp_path: Path) -> None:
    assert names(expand_pattern("{8..11}.tar", tmp_path)) == ["8.tar", "9.tar", "10.tar", "11.tar"]
    assert names(expand_pattern("{08..11}.tar", tmp_path)) == ["08.tar", "09.tar", "10.tar", "11.tar"]
    assert names(expand_pattern("{0..100..50}.tar", tmp_path)) == ["0.tar", "50.tar", "100.tar"]
    assert names(expand_pattern("{2..0}.tar", tmp_path)) == ["2.tar", "1.tar", "0.tar"]
    assert names(expand_pattern("{1..{1..2}}.tar", tmp_path)) == ["1.tar", "1.tar", "2.tar"]
    assert len(expand_pattern("{0..9}/{0..9}{0..9}.tar", tmp_path)) == 1000


@pytest.mark.parametrize(
    "pattern",
    [
        "{0..10000000}.tar",
        "{0..999999999999999999999999}.tar",
        f"{{0..{'9' * 100}}}.tar",
        "{0..999999999999..2}.tar",
        "{0..999}/{0..999}/{0..9}.tar",
        "{0..9}" * 30,
        "{0..{0..9999999}}.tar",
        "{10000000..0}/*.tar",
    ],
)
def test_no_pattern_counts_without_end(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(OpenBlipError, match=rf"stands for more than {MOST_FILES:,} files: count less far"):
        expand_pattern(pattern, tmp_path)
    with pytest.raises(OpenBlipError, match="count less far"):
        read_source(DataSource("mine", table=pattern), tmp_path)


FOLDERS = ("trip [2019]", "a*b", "q?", "[x]/[y]")


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_with_marks_are_meant_as_they_are(tmp_path: Path, folder: str) -> None:
    for name in ("img[1].jpg", "img2.jpg", "note.txt"):
        put(tmp_path / "all" / folder / name)
    put(tmp_path / "all/trip 2/other.jpg")
    put(tmp_path / "all/axb/other.jpg")
    base = tmp_path / "all" / folder
    expected = [base / "img2.jpg", base / "img[1].jpg"]
    assert expand_pattern(f"{folder}/*.jpg", tmp_path / "all") == expected
    assert expand_pattern(f"{base}/*.jpg", Path("elsewhere")) == expected
    assert sorted(map(Path, find_images([f"{base}/*.jpg"]))) == expected
    assert expand_pattern(f"*/{folder}/img[[]1].jpg", tmp_path) == [base / "img[1].jpg"]
    assert expand_pattern(f"{folder}/img[12].jpg", tmp_path / "all") == [base / "img2.jpg"]
    assert {Path(found) for found in find_images([f"{tmp_path}/**/*.jpg"])} >= set(expected)


def test_brackets_are_a_pattern_where_no_name_has_them(tmp_path: Path) -> None:
    for year in ("2018", "2019"):
        put(tmp_path / f"trip {year}/a.jpg")
    assert [path.parent.name for path in expand_pattern("trip 201[89]/*.jpg", tmp_path)] == ["trip 2018", "trip 2019"]
    assert len(find_images([f"{tmp_path}/trip 201[9]/*.jpg"])) == 1


@pytest.mark.parametrize("path", ["C:\\Users\\me\\a.jpg", "d:/photos/a.jpg", "\\\\server\\share\\a.jpg"])
def test_paths_on_windows_drives_get_a_sentence(tmp_path: Path, path: str) -> None:
    (tmp_path / "t.csv").write_text(f"image,caption\n{path},a dog\n")
    with pytest.raises(OpenBlipError, match=r"t.csv, line 2, has a path on a Windows drive .*data_root and images"):
        read_table(tmp_path / "t.csv")


def test_backslashes_are_mapped_but_where_a_file_is_called_so(tmp_path: Path) -> None:
    put(tmp_path / "odd\\name.jpg")
    (tmp_path / "t.csv").write_text("image,caption\nsub\\a.jpg,x\nsub/in\\b.jpg,y\nodd\\name.jpg,z\n.\\c.jpg,x\n")
    found = [row.image for row in read_table(tmp_path / "t.csv")]
    assert found == [tmp_path / name for name in ("sub/a.jpg", "sub/in/b.jpg", "odd\\name.jpg", "c.jpg")]


def test_a_text_in_place_of_a_path_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"image,caption\n{'a dog runs ' * 40},a.jpg\n")
    with pytest.raises(
        OpenBlipError, match=r"t.csv, line 2, has a path of 439 bytes, .* is a text where the path should"
    ):
        read_table(tmp_path / "t.csv")
