"""Files that were changed at random are read or refused in one line, within 10 s and 2 GB; nothing else happens.

$SCOREBAYES_FUZZ_SECONDS is the time for all kinds together; without it, a few files of each kind are tried.
"""

from __future__ import annotations

import contextlib
import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.fuzz import Reader, fuzz
from fuzz.kinds import KINDS
from fuzz.mutate import mutate
from scorebayes.data import parse_options
from scorebayes.data.sources.inbreast import read_regions
from scorebayes.data.sources.tables import read_table
from scorebayes.errors import ScoreBayesError

TRIES = 25
STARTS = ("path,label\n", "", "sep=;\n", "path\tlabel\r")
SECONDS = float(os.environ.get("SCOREBAYES_FUZZ_SECONDS", 0))
QUICK = settings(
    max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=not SECONDS
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    found = Reader(tmp_path_factory.mktemp("fuzz"))
    yield found
    found.end()


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_file_is_read_or_refused(reader, kind) -> None:
    if kind == "JSON":
        pytest.importorskip("scorebayes.storage.sealed")  # which refuses a run's files before they are parsed
    if SECONDS:
        counts, others = fuzz(kind, reader, seconds=SECONDS / len(KINDS), seed=random.randrange(2**32))
    else:
        counts, others = fuzz(kind, reader, tries=TRIES)
    assert not others, others[0]
    assert counts["refused"] > 0


def test_the_search_notices_what_it_looks_for(reader, monkeypatch) -> None:
    """Another exception, several lines, a death: each is told from a refusal."""
    from fuzz.fuzz import answer

    for fault in (ValueError("x"), KeyError("y"), ScoreBayesError("a")):

        def read(_path, fault=fault):
            raise fault

        monkeypatch.setitem(KINDS, "fault", KINDS["PNG"].__class__(KINDS["PNG"].seeds, read, "a.png"))
        assert answer("fault", reader.folder / "a.png")[0] == (
            "refused" if isinstance(fault, ScoreBayesError) else "other"
        )


def test_changes_are_the_same_for_the_same_draws() -> None:
    one, two = (mutate(b"0123456789" * 9, [b"abcdef"], random.Random(3)) for _ in range(2))
    assert one == two != b"0123456789" * 9


@QUICK
@given(
    st.text(st.characters(exclude_categories=()), max_size=300),
    st.sampled_from(["path,label\n", "", "sep=;\n", "path\tlabel\r"]),
)
def test_any_text_is_a_table_or_refused(tmp_path_factory, text, start) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes((start + text).encode("utf-8", "surrogatepass"))
    with contextlib.suppress(ScoreBayesError):
        read_table(path, ("path|file", "label"), ("view",))


@QUICK
@given(st.text("()., 0123456789-+eEinfa\t", max_size=30), st.text(max_size=20))
def test_any_point_is_read_or_refused(tmp_path_factory, point, name) -> None:
    path = tmp_path_factory.getbasetemp() / "any.xml"
    rois = f"<dict><key>Name</key><string>{name}</string><key>Point_px</key><array><string>{point}</string></array></dict>"
    text = f"<plist><dict><key>Images</key><array><dict><key>ROIs</key><array>{rois}</array></dict></array></dict></plist>"
    path.write_text(text, encoding="utf-8", errors="replace")
    with contextlib.suppress(ScoreBayesError):
        assert all(
            isinstance(x, float) for _, points in read_regions(path) for point in points for x in point
        )


@QUICK
@given(st.text(max_size=50))
def test_any_option_is_a_value_or_refused(text) -> None:
    with contextlib.suppress(ScoreBayesError):
        assert parse_options([text]) is not None


def test_seeds_are_good_files(reader, tmp_path) -> None:
    """What is changed must be read before it is changed, or only the first check is ever seen."""
    for kind, of in KINDS.items():
        (tmp_path / kind).mkdir()
        words = {reader(kind, data)[0] for data in of.seeds(tmp_path / kind)}
        assert words == {"refused" if kind == "plist" else "accepted"}, kind
