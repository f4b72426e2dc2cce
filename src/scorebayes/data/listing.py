"""Which files of a folder are images: the content decides, not the name, and whatever is left out is counted."""

from __future__ import annotations

import re
import stat
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scorebayes.data.pixels.files import HIDDEN, LINK, SYSTEM, files_below
from scorebayes.data.pixels.images import SUFFIXES

NO_IMAGE, INDEX, MASK = "no image", "an index of a DICOM disc", "a mask beside its image"
WORDS = {
    NO_IMAGE: ("is no image", "are no images"),
    MASK: ("is a mask beside its image", "are masks beside their images"),
    INDEX: ("is an index of a DICOM disc", "are indexes of DICOM discs"),
    HIDDEN: ("is hidden", "are hidden"),
    SYSTEM: ("belongs to the system", "belong to the system"),
    LINK: ("is a link to a folder", "are links to folders"),
}
FOREIGN = (".bmp", ".gif", ".webp", ".jp2", ".j2k", ".nii", ".mha", ".mhd", ".nrrd", ".heic", ".avif")
"""Images that are not read. They are listed all the same, so that the reader says so of each."""
_SIGNATURES = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    b"\x93NUMPY",
    *(b"GIF87a", b"GIF89a", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
)
_MEDIA_STORAGE_DIRECTORY = b"\x02\x00\x02\x00UI\x14\x001.2.840.10008.1.3.10"
_MASK_WORD = r"(?:masks?|seg|segm|segmentations?|labels?|gt|ground[ _-]?truth|annotations?)"
_MASKS = (
    re.compile(rf"(?P<base>.+?)[ _.-]+{_MASK_WORD}(?:[ _.-]*\d+)?", re.IGNORECASE),
    re.compile(rf"{_MASK_WORD}[ _.-]+(?P<base>.+)", re.IGNORECASE),
)
MASK_FOLDERS = (
    *("mask", "masks", "label", "labels", "gt"),
    *("segmentation", "segmentations", "annotation", "annotations"),
)
SHOWN = 3  # names of each kind


@dataclass(frozen=True)
class Listing:
    """The images below a folder, by name, and everything else with the kind of reason."""

    images: list[Path]
    left_out: dict[Path, str] = field(default_factory=dict)


def list_images(root: Path, unreadable: Callable[[OSError], None] | None = None) -> Listing:
    """Look at every file below a folder. ``unreadable`` as in ``files_below``."""
    left_out: dict[Path, str] = {}
    files = list(files_below(root, unreadable, left_out.__setitem__))
    images = []
    for path in files:
        if (reason := _reason(path)) is None:
            images.append(path)
        else:
            left_out[path] = reason
    for path in masks(images):
        left_out[path] = MASK
    return Listing([path for path in images if path not in left_out], left_out)


def masks(images: Sequence[Path]) -> list[Path]:
    """Those that are named as the mask of another: ``x_mask.png``, ``x_mask_1.png`` or ``x_seg.png`` beside ``x.png``, and
    ``masks/x.png`` where ``x.png`` is in the folder above or in one beside ``masks``."""
    plain = [path for path in images if path.parent.name.casefold() not in MASK_FOLDERS]
    beside = {(path.parent, path.stem.casefold()) for path in images}
    around = {
        (folder, path.stem.casefold()) for path in plain for folder in (path.parent, path.parent.parent)
    }
    found = []
    for path in images:
        bases = [base.casefold() for base in mask_bases(path)]
        in_folder = path.parent.name.casefold() in MASK_FOLDERS
        names = [path.stem.casefold(), *bases] if in_folder else []
        if any((path.parent, base) in beside for base in bases) or any(
            (path.parent.parent, name) in around for name in names
        ):
            found.append(path)
    return found


def mask_bases(path: Path) -> list[str]:
    """Names of images whose mask a file may be, by its own name: ``x`` for ``x_mask_1.png``."""
    return [match["base"] for form in _MASKS if (match := form.fullmatch(path.stem))]


def left_out_words(left_out: dict[Path, str], root: Path | None = None) -> str:
    """What was left out, counted: "3 files left out: 2 are no images (a.txt, b.txt), 1 is hidden (.x)." Empty for none."""
    of_kind: defaultdict[str, list[str]] = defaultdict(list)
    for path, kind in left_out.items():
        of_kind[kind].append(path.name if root is None else path.relative_to(root).as_posix())
    parts = []
    for kind, words in WORDS.items():
        if names := sorted(of_kind[kind]):
            shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
            parts.append(f"{len(names)} {words[len(names) > 1]} ({shown})")
    n = len(left_out)
    return (
        f"{n} {'files or folders' if n > 1 else 'file or folder'} left out: {', '.join(parts)}." if n else ""
    )


def _reason(path: Path) -> str | None:
    """Why a file is no image; None where it may be one, and its reader has to say what is wrong with it."""
    suffix = path.suffix.lower()
    if suffix in FOREIGN or (suffix in SUFFIXES and suffix not in (".dcm", ".dicom")):
        return None
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None if suffix in SUFFIXES else NO_IMAGE
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError:
        return None
    if head[128:132] == b"DICM":
        return INDEX if _MEDIA_STORAGE_DIRECTORY in head else None
    return None if suffix in SUFFIXES or head.startswith(_SIGNATURES) else NO_IMAGE
