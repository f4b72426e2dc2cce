"""The note beside what was learned of an encoder's features: of which weights, by which options, under which licence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scorebayes.errors import ConfigError
from scorebayes.evidence.encoders.base import Encoder
from scorebayes.storage import sealed


class Note:
    """``about.json`` in the folder of a source of evidence. ``options``: those that what is learned depends on."""

    def __init__(self, folder: Path, source: str, encoder: Encoder, options: Mapping[str, Any]) -> None:
        self.path = folder / "about.json"
        self.source = source
        self.encoder = encoder
        self.learned_by = {
            "encoder": encoder.name, "sha256": encoder.sha256, "fingerprint": encoder.fingerprint, **options,
        }  # fmt: skip

    def write(self, **facts: Any) -> None:
        """Vouches for what was learned: written last."""
        about = {
            "learned_by": self.learned_by,
            "licence": self.encoder.licence,
            "pretrained_on": self.encoder.pretrained_on,
            **facts,
        }
        sealed.write(self.path, json.dumps(about, indent=1) + "\n")

    def read(self) -> dict[str, Any]:
        return sealed.read_json(self.path)

    def vouches(self) -> bool:
        """Whether something was learned. ConfigError where that was with other options than the configuration has."""
        if not self.path.exists():
            return False
        try:
            before = dict(self.read()["learned_by"])
        except (LookupError, TypeError, ValueError) as error:
            raise sealed.damaged(self.path, error) from error
        changed = [
            f"{key}: {of} -> {self.learned_by.get(key)}"
            for key, of in before.items()
            if of != self.learned_by.get(key)
            and key != "encoder"  # which is known by its weights, wherever they lie
        ]
        if changed:
            raise ConfigError(
                f"{self.path.parent}: learned with other options ({'; '.join(changed)}).",
                f"Restore them in [evidence.{self.source}], or train in a new directory.",
            )
        return True
