"""What the server takes and says to whom."""

from dataclasses import dataclass

LOCAL = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Limits:
    """Most `bytes` and `files` of one request."""

    bytes: int = 32 << 20
    files: int = 256


# the page loads from this server alone, and no other page may show it or post to it
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
