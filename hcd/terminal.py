"""What a person at a terminal is shown."""

import sys


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
    line = printable(" ".join(str(error).split()))
    print(f"hcd: {line}", file=sys.stderr, flush=True)
