"""The table of families: a row that is measured anew changes that row and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families import FAMILIES, Family

pytest.importorskip("click")


def row(family: Family, cell: str, commit: str = "a"):  # type: ignore[no-untyped-def]
    from benchmarks.families import Row

    columns = ("compare", "exact", "decode", "batch", "static", "ort", "modern", "bare")
    return Row(family.name, family.model_type, "F", cells=dict.fromkeys(columns, cell), commit=commit)


def test_one_row_measured_anew_leaves_the_others(tmp_path: Path) -> None:
    from benchmarks.families import put_row

    path, page = tmp_path / "rows.json", tmp_path / "page.md"
    for family in FAMILIES[:3]:
        put_row(row(family, "old"), path, page)
    assert "Measured at commit a." in page.read_text()
    put_row(row(FAMILIES[1], "new", "b"), path, page)
    lines = [line for line in page.read_text().splitlines() if line.startswith(("| gemma4", "| gemma "))]
    assert [("new" in line, "old" in line) for line in lines] == [(False, True), (True, False), (False, True)]
    assert f"Measured at commit a; b ({FAMILIES[1].name})." in page.read_text()


def test_every_family_has_a_row_and_every_cell_of_it_is_measured() -> None:
    from benchmarks.families import OTHERS, ROWS, read_rows

    rows = read_rows(ROWS)
    assert rows.keys() == {family.name for family in FAMILIES}
    for row in rows.values():
        if not row.refused:
            assert row.cells.keys() == {"compare", "exact", "decode", "batch", *OTHERS}, row.family
            assert not [cell for cell in row.cells.values() if "**" in cell or "not judged" in cell or cell == "–"]


def test_list_families_prints_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    import cli
    from benchmarks.architectures import read_rows

    assert cli.main(["list", "families"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    rows = read_rows()
    assert lines.keys() == rows.keys()
    assert "layers sssssF" in lines["gemma3_text"]
    assert lines["dbrx"].strip().startswith("refused: ")
    assert "its code reads values of tensors" in lines["dbrx"]
    assert {row.outcome for row in rows.values()} <= {"match", "refused", "not built"}


@pytest.mark.parametrize("what", ["cases", "metrics", "packages"])
def test_list_prints_a_name_and_what_it_is(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    import cli

    assert cli.main(["list", what]) == 0
    assert all(len(line.split("  ", 1)[1].strip()) > 5 for line in capsys.readouterr().out.splitlines())
