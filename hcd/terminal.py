"""What a person at a terminal is shown."""

import json
import os
import select
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def printable(text: str) -> str:
    """Return a text, such as a file's name, on one line and with nothing that a terminal would take
    for a command: line breaks, escape codes, text that turns round, and bytes that are no UTF-8 are
    shown as a backslash and their code."""
    return "".join(sign if sign.isprintable() else _escaped(sign) for sign in text)


def _escaped(sign):
    if "\udc80" <= sign <= "\udcff":  # how Python holds a byte that is no UTF-8
        return f"\\x{ord(sign) - 0xDC00:02x}"
    return sign.encode("unicode_escape").decode()


def tell(error: object) -> None:
    """Print what went wrong on one line, whatever a library wrote."""
    print(f"hcd: {_line(error)}", file=sys.stderr, flush=True)


@contextmanager
def tell_warnings() -> Iterator[None]:
    """Print what hcd itself warns of as `tell` does; a library's warnings keep file and line."""
    show = warnings.showwarning

    def shown(message, category, filename, *rest):
        if category is UserWarning and Path(__file__).parent in Path(filename).parents:
            tell(message)
        else:
            show(message, category, filename, *rest)

    warnings.showwarning = shown
    try:
        yield
    finally:
        warnings.showwarning = show


def tell_launcher(error: object) -> None:
    """Hand on why this process will fail to torchrun, where that has started it.

    Of every process that fails torchrun prints a report of its own, which nothing here can leave
    out; what is handed on ends it, in the place of advice on how to get a traceback.
    """
    place = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if place:
        line = f"hcd: {_line(error)}"
        more = {"py_callstack": line, "timestamp": str(int(time.time()))}
        # on a full disk torchrun gives its advice; that does not change how this process ends
        with suppress(OSError), open(place, "w", encoding="utf-8") as file:
            json.dump({"message": {"message": line, "extraInfo": more}}, file)


def is_unread() -> bool:
    """Say whether what is printed goes into a pipe whose reader, such as `head`, has gone."""
    try:
        pipe = select.poll()
        pipe.register(sys.stdout.fileno(), 0)  # for nothing but errors
        return bool(pipe.poll(0))
    except (OSError, ValueError, AttributeError):  # a test's or a notebook's; Windows has no poll
        return False


def stop_printing() -> None:
    """Have what is printed, and what waits for it, go nowhere; else Python complains at its end."""
    with suppress(OSError, ValueError, AttributeError):  # a test's or a notebook's
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _line(error):
    return printable(" ".join(str(error).split()))
