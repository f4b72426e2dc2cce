"""The check of a data set, its contact sheet, and their commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.native_trees import INBREAST_ROWS, cbis_ddsm, inbreast, vindr_mammo
from PIL import Image
from typer.testing import CliRunner

from scorebayes.cli.data import app
from scorebayes.data import open_source
from scorebayes.data.check import COUNTS, as_text, check
from scorebayes.data.prepare import Prepare
from scorebayes.data.show import contact_sheet
from scorebayes.data.sources.inbreast import InBreast
from scorebayes.data.sources.mammograms import Count
from scorebayes.errors import DataError


@pytest.fixture
def whole(tmp_path: Path, monkeypatch) -> InBreast:
    """A tree whose published counts are those of the fixture."""
    monkeypatch.setitem(COUNTS, "inbreast", lambda source: [Count("images", len(INBREAST_ROWS), 5)])
    return InBreast(inbreast(tmp_path))


def test_a_whole_data_set_is_in_order(whole) -> None:
    result = check(whole)
    assert result["ok"] and result["records"] == 5 and result["patients"] == 3
    assert sum(sum(classes.values()) for classes in result["images"].values()) == 5
    assert "Everything is in order." in as_text(result)
    json.dumps(result)


def test_an_unreadable_image_is_named_with_its_reason(whole) -> None:
    next(whole.root.rglob("29990063_*.dcm")).write_text("<html>")
    assert check(whole, pixels=False)["ok"]
    result = check(whole)
    assert not result["ok"]
    (entry,) = result["left_out"]["unreadable"]
    assert entry["id"] == "29990063" and "failed download" in entry["reason"]
    text = as_text(result)
    assert "unreadable: 1" in text and "need a look" in text


def test_differing_counts_and_missing_images_are_shown(tmp_path) -> None:
    root = cbis_ddsm(tmp_path)
    for path in root.rglob("*.dcm"):
        path.unlink()
    result = check(open_source(f"cbis-ddsm:{root}"))
    assert result["records"] == 0 and not result["ok"]
    assert len(result["left_out"]["missing"]) == 7
    text = as_text(result)
    assert "and 2 more" in text and "5 of 1318   differs" in text and "No image is usable." in text


def test_the_contact_sheet_shows_both_classes_before_and_after(tmp_path) -> None:
    source = open_source(f"vindr-mammo:{vindr_mammo(tmp_path)}")
    out = tmp_path / "new" / "sheet.png"
    records = contact_sheet(source, Prepare(32, bits=12, steps=("mammogram",)), out, n=4)
    assert [r.label for r in records] == [0, 0, 1, 1]
    with Image.open(out) as sheet:
        assert sheet.width > 600


def test_the_contact_sheet_says_why_an_image_is_unusable_and_draws_colour(tmp_path) -> None:
    root = inbreast(tmp_path)
    next(root.rglob("29990063_*.dcm")).write_text("<html>")
    assert len(contact_sheet(InBreast(root), Prepare(32, bits=14), tmp_path / "a.png")) == 5
    phantom = open_source("phantom:n_patients=2,views=1")
    contact_sheet(phantom, Prepare(32, phantom.info.channels), tmp_path / "b.png", n=2)
    for path in root.rglob("*.dcm"):
        path.unlink()
    with pytest.raises(DataError, match="no usable image"):
        contact_sheet(InBreast(root), Prepare(32), tmp_path / "c.png")


def test_the_commands_check_and_show(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = inbreast(tmp_path / "data")
    run = CliRunner().invoke
    result = run(app, ["check", f"inbreast:{root}", "--workers", "0"])
    assert result.exit_code == 1 and "5 of 410   differs" in result.stdout
    result = run(app, ["check", f"inbreast:{root}", "--json", "--no-pixels"])
    assert json.loads(result.stdout)["records"] == 5
    monkeypatch.setitem(COUNTS, "inbreast", lambda source: [])
    assert run(app, ["check", f"inbreast:{root}", "--no-pixels"]).exit_code == 0
    result = run(app, ["show", f"inbreast:{root}", "--steps", "mammogram,clahe", "--size", "32", "-n", "3"])
    assert result.exit_code == 0 and "contact-sheet.png shows 3 images" in result.stdout
    assert (tmp_path / "contact-sheet.png").is_file()
    for command in ("check", "show"):
        assert "Example: scorebayes data" in run(app, [command, "--help"]).stdout
