"""Files that a run can trust: complete or absent, checked before they are used, and written by one run at a time."""

import fcntl
import hashlib
import io
import json
import os
import sys
import time

from etils import epath


def checksums(folder: epath.Path) -> dict[str, str]:
    """The SHA-256 of every file of a checkpoint, by its path inside the checkpoint."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found |= {f"{path.name}/{name}": value for name, value in checksums(path).items()}
        else:
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def checksum_file(folder: epath.Path, step: int) -> epath.Path:
    return folder.parent / "checksums" / f"{step}.json"


def write_checksums(folder: epath.Path, step: int) -> None:
    """The file of the checksums of that step's checkpoint, beside the folder of the checkpoints."""
    write_whole(checksum_file(folder, step), json.dumps(checksums(folder / str(step))).encode())


def set_damaged_aside(folder: epath.Path) -> None:
    """Moves the newest checkpoints away until one is as it was saved, and says which.

    A checkpoint without checksums counts as damaged, since there is no way to tell. The one before is still there.
    """
    steps = sorted((int(path.name) for path in folder.glob("*") if path.name.isdigit()), reverse=True)
    for step in steps:
        now, saved, why = checksums(folder / str(step)), {}, "it has no checksums"
        try:
            saved = dict(json.loads(checksum_file(folder, step).read_text()))
            why = ", ".join(name for name in sorted({*saved, *now}) if saved.get(name) != now.get(name))
        except (OSError, ValueError, TypeError):
            pass
        if saved == now:
            return
        aside = folder.parent / "damaged" / f"{step}-{time.time_ns()}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        (folder / str(step)).rename(aside)
        print(f"Checkpoint {step} is damaged: {why}. It was moved to {aside}.", file=sys.stderr)


def write_whole(path: epath.Path, content: bytes) -> None:
    """Writes a temporary file and renames it: whatever fails, even a full disk, leaves an old file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f".{path.name}.tmp"
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def lock(output: str):
    """Locks a file for one run; the lock is released when the process ends, for whatever reason.

    Raises:
      SystemExit: another run has locked it.
    """
    if "://" in output:  # a bucket has no locks
        return io.BytesIO()
    os.makedirs(output, exist_ok=True)
    file = open(os.path.join(output, "lock"), "wb")  # noqa: SIM115 (held as long as the process runs)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise SystemExit(f"Another run writes to {output}: wait for it, or choose another folder, --output.") from None
    return file
