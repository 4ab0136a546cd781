from pathlib import Path

import pytest

from eval.rows import read_rows
from ift.errors import UserError


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_an_array_and_json_lines_give_the_same_rows(tmp_path: Path) -> None:
    array = read_rows(write(tmp_path / "a.json", ' [{"x": "1"},\n {"x": "2\u2028"}]'))
    lines = read_rows(write(tmp_path / "b.json", '\ufeff{"x": "1"}\r\n\n{"x": "2\u2028"}'))
    assert [row.text("x") for row in array] == [row.text("x") for row in lines] == ["1", "2\u2028"]
    assert [row.id("b") for row in array] == ["b-00000", "b-00001"]
    assert (array[1].place, lines[1].place) == (f"{tmp_path}/a.json [1]", f"{tmp_path}/b.json line 3")


def test_own_ids_are_kept_as_text(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "a.json", '[{"id": 12}, {"id": "x"}, {"id": null}, {"id": 1.5}]'))
    assert [row.id("b") for row in rows[:3]] == ["12", "x", "b-00002"]
    with pytest.raises(UserError, match="'id' must be text or a whole number; found float"):
        rows[3].id("b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file holds no rows"),
        ("[]", "the file holds no rows"),
        ("[{},\n{]", "line 2: not valid JSON"),
        ("{}\nnope", "line 2: not valid JSON"),
        ("[{}, 3]", r"\[1\]: expected a JSON object; found int"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_rows(write(tmp_path / "a.json", text))


def test_other_encodings_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "gbk.json").write_bytes('[{"x": "汉"}]'.encode("gbk"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_rows(tmp_path / "gbk.json")
    with pytest.raises(UserError, match="no such file"):
        read_rows(tmp_path / "none.json")
    with pytest.raises(UserError, match="'x' must be text; found int"):
        read_rows(write(tmp_path / "a.json", '[{"x": 1}]'))[0].text("x")
