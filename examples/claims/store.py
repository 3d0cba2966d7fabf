"""Measurements as files: what is finished is kept, so that a study that was stopped goes on where it was."""

import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from claims.claim import Setting


class Store:
    """A folder with one JSON file a measurement, each with the settings that it was made with."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        self._folder = folder
        images = hashlib.sha256()
        for array in setting.images[:2]:
            images.update(np.ascontiguousarray(array).tobytes())
        self._settings = {"seeds": setting.seeds, "fast": setting.fast, "images": images.hexdigest()[:16]}

    def _path(self, claim: str, part: str) -> Path:
        return self._folder / claim / (re.sub(r"[^\w.]+", "_", part) + ".json")

    def read(self, claim: str, part: str) -> dict[str, Any] | None:
        """The measurement, or None where there is none of these settings; a damaged file is told of, and is none."""
        path = self._path(claim, part)
        try:
            found = json.loads(path.read_text())
            return found["measured"] if found["settings"] == self._settings else None
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            print(f"{path} is damaged ({error}); it is measured again")
            return None

    def write(self, claim: str, part: str, measured: dict[str, Any]) -> None:
        """Whole or not at all: a program that is stopped leaves the old file."""
        write_whole(self._path(claim, part), json.dumps({"settings": self._settings, "measured": plain(measured)}))


def write_whole(path: Path, text: str) -> None:
    """Writes a file, and its folder where there is none, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def plain(value: Any) -> Any:
    """What JSON can hold: arrays as lists, numbers with six digits, None for those that are not finite."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
