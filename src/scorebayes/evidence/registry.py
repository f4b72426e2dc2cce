"""All sources of evidence. A new one is one file next to this one and one line here."""

from __future__ import annotations

from scorebayes.evidence.base import Evidence
from scorebayes.evidence.features import Features
from scorebayes.evidence.pixels import Pixels
from scorebayes.evidence.pooled import Pooled
from scorebayes.evidence.wavelets import Wavelets

EVIDENCE: dict[str, type[Evidence]] = {
    Pixels.name: Pixels,
    Wavelets.name: Wavelets,
    Features.name: Features,
    Pooled.name: Pooled,
}
