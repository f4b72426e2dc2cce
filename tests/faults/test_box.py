"""Decoders in a box: whatever happens to the process that decodes, it costs the file that caused it and no other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fixtures.native_trees import breast, write_dicom
from PIL import Image

from scorebayes.data import read_image
from scorebayes.data.check import check
from scorebayes.data.load import load
from scorebayes.data.pixels import box
from scorebayes.data.pixels.images import image_bits
from scorebayes.data.prepare import Prepare
from scorebayes.data.sources.folder import Folder
from scorebayes.errors import DataError

ILLS = {  # what a file of that name does to its decoder
    "crash": "import ctypes; ctypes.string_at(0)",
    "abort": "import os; os.abort()",
    "leave": "import os; os._exit(0)",
    "loop": "while True: pass",
    "fill": "import numpy; kept = numpy.ones(2**30)",
    "hoard": "kept = []\nwhile True: kept.append(bytes(10**6))",
    "print": "print('a decoder that talks', flush=True)",
}
WORDS = {
    "crash": "crashed the process that decoded it",
    "abort": "crashed the process that decoded it",
    "leave": "crashed the process that decoded it",
    "loop": "takes more than 10 s to decode",
    "fill": "needs more than 2 GB of memory",
    "hoard": "needs more than 2 GB of memory",
}
LINUX = sys.platform == "linux"


@pytest.fixture
def ill(tmp_path, monkeypatch):
    """Decoders that fall ill at files of certain names, in the processes that are started from now on."""
    cases = "\n".join(
        f"if path.stem == {name!r}:\n{textwrap.indent(code, '    ')}" for name, code in ILLS.items()
    )
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'scorebayes.data.pixels.box_worker' in ' '.join(sys.orig_argv):\n"
        "    from scorebayes.data.pixels import box, formats\n"
        "    read = formats.read_content\n"
        "    def fall_ill(path, modalities=()):\n"
        f"{textwrap.indent(cases, ' ' * 8)}\n"
        "        return read(path, modalities)\n"
        "    formats.read_content = fall_ill\n"
        "    box.SECONDS = 1\n"
    )
    box._end_all()
    monkeypatch.syspath_prepend(tmp_path / "hook")
    yield tmp_path / "data"
    box._end_all()


def images(root: Path, *names: str) -> Path:
    """Class folders; the images of each name are alike in all calls."""
    for number, name in enumerate(names):
        path = root / ("benign", "malignant")[number % 2] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = np.random.default_rng(sum(map(ord, name))).integers(0, 256, (32, 32))
        Image.fromarray(grey.astype(np.uint8)).save(path)
    return root


def some(root: Path, name: str) -> Path:
    (path,) = images(root, name).rglob(f"{name}.png")
    return path


@pytest.mark.parametrize("name", ["crash", "abort", "leave", "loop", *(["fill", "hoard"] if LINUX else [])])
def test_a_file_that_ends_its_decoder_is_refused_in_words(ill, name) -> None:
    good, bad = some(ill, "good"), some(ill, name)
    before = read_image(good)
    for _ in range(2):  # by a process that has read others, and by a new one
        with pytest.raises(DataError) as caught:
            read_image(bad)
        assert WORDS[name] in str(caught.value) and str(bad) in str(caught.value)
        assert "\n" not in str(caught.value) and caught.value.__cause__ is None
        np.testing.assert_array_equal(read_image(good), before)


def test_what_a_decoder_prints_does_not_get_among_the_answers(ill, capfd) -> None:
    np.testing.assert_array_equal(
        read_image(some(ill, "print")), np.asarray(Image.open(ill / "benign" / "print.png")) / np.float32(255)
    )
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("workers", [0, 2])
def test_such_files_are_set_apart_and_the_others_are_bitwise_unchanged(ill, tmp_path, workers) -> None:
    names = ["a", "b", "crash", "c", "abort", "d", "e", "f"]
    source = Folder(images(ill, *names))
    found, rejected = load(source, source.records(), Prepare(size=32), workers=workers)
    assert sorted(Path(entry.image_id).stem for entry in rejected) == ["abort", "crash"]
    assert all("crashed the process" in entry.reason for entry in rejected)
    clean = Folder(images(tmp_path / "clean", *"abcdef"))
    expected, _ = load(clean, clean.records(), Prepare(size=32))
    order = {Path(key).stem: row for row, key in enumerate(expected.keys)}
    rows = [order[Path(key).stem] for key in found.keys]
    np.testing.assert_array_equal(found.images, expected.images[rows])
    assert len(check(source)["left_out"]["unreadable"]) == 2


def test_a_process_that_was_killed_between_two_files_costs_nothing(tmp_path) -> None:
    path = some(tmp_path, "good")
    before = read_image(path)
    box._idle[-1].process.kill()
    np.testing.assert_array_equal(read_image(path), before)


def test_many_threads_read_side_by_side(tmp_path) -> None:
    paths = sorted(images(tmp_path, *"abcdefgh").rglob("*.png"))
    expected = {path: read_image(path) for path in paths}
    wrong: list[Path] = []

    def work(mine: list[Path]) -> None:
        wrong.extend(path for path in mine * 5 if (read_image(path) != expected[path]).any())

    threads = [threading.Thread(target=work, args=(paths[k:] + paths[:k],)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(box._all) <= (os.cpu_count() or 1)


def _in_child(path: Path, answers) -> None:
    answers.put(float(read_image(path).sum()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_and_a_daemon_have_boxes_of_their_own(tmp_path) -> None:
    path = some(tmp_path, "good")
    expected = float(read_image(path).sum())
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(path, answers), daemon=True)
    child.start()
    assert answers.get() == expected
    child.join()
    assert float(read_image(path).sum()) == expected  # the parent's was left alone


SCRIPT = """
import os, sys, time
from pathlib import Path
from scorebayes import read_image
from scorebayes.data.pixels import box
print(read_image({path!r}).shape, box._idle[0].process.pid, flush=True)
{rest}
"""


def run(tmp_path: Path, path: Path, rest: str, **options) -> tuple[int, str]:
    """A script without a main guard; its exit status, and the process that decoded for it."""
    (tmp_path / "script.py").write_text(SCRIPT.format(path=str(path), rest=rest))
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], text=True, timeout=60, stdout=subprocess.PIPE, **options
    )
    shape, _, pid = done.stdout.strip().rpartition(" ")
    assert shape == "(32, 32)"
    return done.returncode, pid


def gone(pid: str) -> bool:
    for _ in range(100):
        try:
            os.kill(int(pid), 0)
            if LINUX and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("rest", "status"), [("", 0), ("os.kill(os.getpid(), 9)", -9), ("os.kill(os.getpid(), 15)", -15)]
)
def test_no_process_is_left_however_the_program_ends(tmp_path, rest, status) -> None:
    code, pid = run(tmp_path, some(tmp_path, "good"), rest)
    assert code == status and gone(pid)


def test_no_module_of_the_working_directory_is_imported(tmp_path) -> None:
    path = some(tmp_path / "data", "good")
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for name in ("numpy", "struct", "pydicom", "PIL", "json"):
        (hostile / f"{name}.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    assert run(tmp_path, path, "", cwd=hostile)[0] == 0
    assert not (tmp_path / "owned").exists()


def test_paths_are_taken_from_where_the_program_is_now(tmp_path, monkeypatch) -> None:
    for name in ("one", "two"):
        some(tmp_path / name, name).rename(tmp_path / name / "image.png")
    for name in ("one", "two", "one"):
        monkeypatch.chdir(tmp_path / name)
        expected = np.asarray(Image.open("image.png")) / np.float32(255)
        np.testing.assert_array_equal(read_image("image.png"), expected)
        with pytest.raises(DataError, match=r"^gone\.png does not exist"):
            read_image("gone.png")


@pytest.mark.parametrize("python", ["", "/none", "/bin/false", "/bin/echo"])
def test_where_no_process_can_be_started_this_one_decodes_and_says_so(tmp_path, monkeypatch, python) -> None:
    path = some(tmp_path, "good")
    expected = read_image(path)
    box._end_all()
    monkeypatch.setattr(sys, "executable", python)
    monkeypatch.setattr(box, "_cannot_start", False)
    with pytest.warns(RuntimeWarning, match="this one decodes them"):
        np.testing.assert_array_equal(read_image(path), expected)
    assert image_bits(path) == 8 and not box._idle
    with pytest.raises(DataError, match="does not exist"):
        read_image(path.with_name("gone.png"))


def test_limits_hold_whatever_the_program_did_with_the_signals(ill, tmp_path) -> None:
    """Ignored and blocked signals are handed down to processes that are started."""
    block = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF, signal.SIGALRM})\n"
    block += "signal.signal(signal.SIGPROF, signal.SIG_IGN); signal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
    path = str(some(ill, "loop"))
    script = f"from scorebayes import read_image\ntry: read_image({path!r})\nexcept Exception as e: print(e)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", block + script], env=environment, timeout=60, text=True, stdout=-1
    )
    assert WORDS["loop"] in done.stdout


def test_a_disk_that_fails_and_a_folder_that_is_gone_are_told(tmp_path, monkeypatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(DataError, match="nor does the working directory"):
        read_image("a.png")
    if LINUX and os.access("/proc/self/mem", os.R_OK):
        with pytest.raises(DataError):
            read_image("/proc/self/mem")


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="signals of Unix")
def test_half_an_answer_is_never_taken_for_the_next(ill, monkeypatch) -> None:
    good = some(ill, "good")
    expected = read_image(good)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            read_image(some(ill, "loop"))
    finally:
        signal.signal(signal.SIGALRM, before)
    np.testing.assert_array_equal(read_image(good), expected)


def test_pixels_are_those_of_the_readers_themselves(tmp_path) -> None:
    """What lies in one piece in the file is read by this process, whatever its order and type."""
    from scorebayes.data.pixels.formats import read_content

    draws = np.random.default_rng(0)
    stored = draws.integers(0, 4096, (40, 30)).astype(np.uint16)
    arrays = {
        "c": stored, "fortran": np.asfortranarray(stored), "big": stored.astype(">u2"), "first": stored[None],
        "planes": draws.random((3, 40, 30)), "alpha": draws.random((40, 30, 4)).astype(np.float16),
        "bool": stored > 99, "one": stored[:1, :1],
    }  # fmt: skip
    paths = [tmp_path / f"{name}.npy" for name in arrays]
    for path, array in zip(paths, arrays.values(), strict=True):
        np.save(path, array)
    paths.append(
        write_dicom(tmp_path / "a.dcm", breast(bits=12), 12, PixelPaddingValue=0, PixelPaddingRangeLimit=9)
    )
    for path in paths:
        mine, boxed = read_content(path).stored.unit(path), read_image(path)
        assert mine.dtype == boxed.dtype == np.float32
        np.testing.assert_array_equal(boxed, mine)
