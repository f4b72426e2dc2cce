"""DICOM: images as they are meant to be displayed, and nothing that identifies a person.

A file goes through these rooms in order; each refuses, in words, what it can't read rightly:
``parse`` (bytes to tags, within limits), ``header`` (is it one image, and of what form), ``stream`` and ``frame`` (to the
words as they are stored), ``words`` (to the values they stand for), then ``grey`` or ``colour`` (to [0, 1]).
``tags`` reads single tags and ``tables`` look-up tables. Section numbers are those of the DICOM standard, part 3 (PS3.3),
unless part 5 is named. The whole is told step by step in docs/reading-images.md.
"""

from scorebayes.data.pixels.dicom.read import dicom_bits, grey_depth, open_dicom, read_dicom

__all__ = ["dicom_bits", "grey_depth", "open_dicom", "read_dicom"]
