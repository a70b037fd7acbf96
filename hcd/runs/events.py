"""What a run tells while it lives: one JSON object a line in its events.jsonl.

The notebook's process appends, the command reads. A line is written at once, so that lines of two
processes never mix; a line that a kill has torn is passed over.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

NAME = "events.jsonl"
RUN = "HCD_RUN"  # the folder of the run that a process belongs to, set by the command
TORN: set[str] = set()  # files whose last line this process could not write whole
APPENDING = os.O_RDWR | os.O_APPEND | os.O_CREAT
APPENDING |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def append(folder, kind: str, **fields: Any) -> None:
    """Append an event to a run's events.jsonl.

    Args:
        folder: of the run. kind: "attempt" as a process begins, "begun" when its settings and data
            are accepted, "warning", "step", "epoch", "failed". fields: what JSON can hold.
    Raises:
        OSError: the file cannot be written.
    """
    event = {"event": kind, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **fields}
    line = json.dumps(event).encode() + b"\n"
    path = Path(folder) / NAME
    descriptor = os.open(path, APPENDING, 0o666)
    try:
        if (kind == "attempt" or str(path) in TORN) and not _ends_with_a_line(descriptor):
            line = b"\n" + line  # ends what a kill or a full disk has torn
        TORN.discard(str(path))
        if os.write(descriptor, line) < len(line):
            TORN.add(str(path))
            raise OSError(f"{path} has no space left for an event; free space, then go on")
    finally:
        os.close(descriptor)


def _ends_with_a_line(descriptor):
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if not size:
        return True
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1) == b"\n"


def tell(kind: str, **fields: Any) -> None:
    """Append an event to the run that this process belongs to; outside `hcd run` to none."""
    folder = os.environ.get(RUN)
    if folder:
        append(folder, kind, **fields)


def read(folder) -> list[dict]:
    """Return a run's events, oldest first; none where there is no file."""
    return Follower(folder).new()


def last_attempt(events: list[dict]) -> list[dict]:
    """Return the events since the last process of the run began."""
    starts = [place for place, event in enumerate(events) if event["event"] == "attempt"]
    return events[starts[-1] :] if starts else events


class Follower:
    """Reads a run's events as they come."""

    def __init__(self, folder, from_end: bool = False):
        self.path = Path(folder) / NAME
        self.place = self.path.stat().st_size if from_end and self.path.is_file() else 0

    def new(self) -> list[dict]:
        """Return the events that have come since the last call."""
        if not self.path.is_file():
            return []
        with open(self.path, "rb") as file:
            file.seek(self.place)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self.place += len(whole)
        return [event for event in map(_parse, whole.splitlines()) if event]


def _parse(line: bytes) -> dict | None:
    """Return one event; None for an empty or torn line, or one that is no event."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
