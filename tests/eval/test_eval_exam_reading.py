"""Where the questions of C-Eval and CMMLU come from, and what is refused."""

from pathlib import Path

import pytest
from exam_files import ODD, write_ceval, write_cmmlu

from eval import ceval, cmmlu
from eval.choice_exam import LETTERS, read_paper
from ift.errors import UserError

SUBJECTS = {"law": "ABCD", "college_physics": "BC"}


def test_a_folder_gives_its_subjects_in_the_benchmarks_order_with_every_text_as_it_is(tmp_path: Path) -> None:
    paper = read_paper(ceval.EXAM, write_ceval(tmp_path, SUBJECTS), shots=0)
    assert [question.subject for question in paper.questions] == ["college_physics"] * 2 + ["law"] * 4
    first = paper.questions[2]
    assert (first.id, first.answer, first.explanation) == ("val-law-0000", "A", "解释")
    assert first.text == f"law题0{ODD[0]}"
    assert first.options == ("甲0", "1,5{0}", " 丙 ", "DNA和维生素A")
    assert len(paper.missing) == 50 and "law" not in paper.missing


def test_the_first_examples_of_each_subject_are_taken(tmp_path: Path) -> None:
    paper = read_paper(cmmlu.EXAM, write_cmmlu(tmp_path, {"anatomy": "A"}), shots=3)
    assert [example.text for example in paper.examples["anatomy"]] == [f"anatomy例{i}{ODD[i]}" for i in range(3)]
    assert paper.split == "test"


def test_a_split_is_named_by_its_folder(tmp_path: Path) -> None:
    write_ceval(tmp_path, SUBJECTS)
    write_ceval(tmp_path, {"law": "DD"}, split="test")
    paper = read_paper(ceval.EXAM, tmp_path / "test", shots=5)
    assert [question.id for question in paper.questions] == ["test-law-0000", "test-law-0001"]
    assert len(paper.examples["law"]) == 5
    assert read_paper(ceval.EXAM, tmp_path / "val", shots=0) == read_paper(ceval.EXAM, tmp_path, shots=0)


def test_a_split_without_answers_is_refused_with_a_pointer(tmp_path: Path) -> None:
    write_ceval(tmp_path, {"law": "AB"}, split="test", labelled=False)
    with pytest.raises(UserError, match=r"'test' has no answers.*2025-07-27: score 'val'"):
        read_paper(ceval.EXAM, tmp_path / "test", shots=0)


def test_what_is_not_the_exam_is_refused_with_what_to_do(tmp_path: Path) -> None:
    root = write_ceval(tmp_path / "ceval", SUBJECTS)
    with pytest.raises(UserError, match="one file per subject"):
        read_paper(ceval.EXAM, root / "val" / "law_val.csv", shots=0)
    (root / "val" / "lww_val.csv").write_text("id,question,A,B,C,D,answer\n", encoding="utf-8")
    with pytest.raises(UserError, match="unknown name 'lww'. Did you mean 'law'"):
        read_paper(ceval.EXAM, root, shots=0)
    with pytest.raises(UserError, match=r"no file SUBJECT_val.csv lies there"):
        read_paper(ceval.EXAM, write_ceval(tmp_path / "test_only", {"law": "A"}, split="test"), shots=0)
    few = write_cmmlu(tmp_path / "few", {"anatomy": "A"})
    (few / "dev" / "anatomy.csv").write_text(",Question,A,B,C,D,Answer\n0,问,一,二,三,四,A\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"--shots: 2: .* has 1 worked examples \('dev'\) of anatomy"):
        read_paper(cmmlu.EXAM, few, shots=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,question,A,B,C,answer\n0,问,一,二,三,A\n", r"line 2: .* needs 'D'; found 'id', 'question'"),
        ("id,question,A,B,C,D,answer\n0,问,一,二\n", r"line 2: .* needs 'C'"),
        ("id,question,A,B,C,D,answer\n0,问,一,二,三,四,A,解,多\n", r"line 2: more cells than the header"),
    ],
)
def test_a_broken_row_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    write_ceval(tmp_path, {"law": "A"})
    (tmp_path / "val" / "law_val.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_paper(ceval.EXAM, tmp_path, shots=0)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    write_ceval(tmp_path, {"law": "A"})
    path = tmp_path / "val" / "law_val.csv"
    path.write_bytes(path.read_text(encoding="utf-8").encode("gb18030"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_paper(ceval.EXAM, tmp_path, shots=0)


@pytest.fixture
def dataset_folder(tmp_path: Path) -> Path:
    """The files of `write_ceval` as a data set with subjects as configurations, as it lies on the hub."""
    root = write_ceval(tmp_path / "ceval-exam", SUBJECTS)
    configurations = []
    for subject in SUBJECTS:
        folder = root / subject
        folder.mkdir()
        for split in ("val", "dev"):
            (root / split / f"{subject}_{split}.csv").rename(folder / f"{split}.csv")
        files = "".join(f"  - split: {split}\n    path: {subject}/{split}.csv\n" for split in ("val", "dev"))
        configurations.append(f"- config_name: {subject}\n  data_files:\n{files}")
    (root / "val").rmdir()
    (root / "dev").rmdir()
    (root / "README.md").write_text(f"---\nconfigs:\n{''.join(configurations)}---\n", encoding="utf-8")
    return root


def test_a_data_set_gives_the_same_questions_as_the_files(
    tmp_path: Path, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = write_ceval(tmp_path / "files", SUBJECTS)
    assert read_paper(ceval.EXAM, dataset_folder, shots=5) == read_paper(ceval.EXAM, files, shots=5)


def test_an_id_on_a_hub_may_name_a_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(name: str, subject: str, *, split: str) -> list[dict[str, str]]:
        asked.append((name, subject, split))
        return [{"question": "问", **dict.fromkeys(LETTERS, "项"), "answer": "A"}]

    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["law", "something_else"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    paper = read_paper(ceval.EXAM, Path("ceval/ceval-exam/test"), shots=1)
    assert asked == [("ceval/ceval-exam", "law", "test"), ("ceval/ceval-exam", "law", "dev")]
    assert [question.id for question in paper.questions] == ["test-law-0000"]


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(name: str) -> list[str]:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "get_dataset_config_names", fail)
    with pytest.raises(UserError, match=r"ceval/ceval-exam: neither a folder .* \(ConnectionError: no route\)"):
        read_paper(ceval.EXAM, Path("ceval/ceval-exam"), shots=0)


def test_the_tables_are_those_of_the_benchmarks() -> None:
    # hkust-nlp/ceval @ cba65ae, subject_mapping.json; haonan-li/CMMLU @ d6e7b71, src/categories.py.
    def sizes(exam: object) -> dict[str, int]:
        groups = [subject.group for subject in exam.subjects.values()]  # type: ignore[attr-defined]
        return {group: groups.count(group) for group in dict.fromkeys(groups)}

    assert sizes(ceval.EXAM) == {"STEM": 20, "Social Science": 10, "Humanities": 11, "Other": 11}
    assert sizes(cmmlu.EXAM) == {"STEM": 17, "Humanities": 13, "Social Science": 22, "Other": 15}
    assert len(ceval._HARD & set(ceval.EXAM.subjects)) == 8
    assert len(cmmlu._CHINA_SPECIFIC & set(cmmlu.EXAM.subjects)) == 15
