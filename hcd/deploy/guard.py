"""Who may ask the server, and what its answers forbid a browser."""

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from .settings import LOCAL


class Guard:
    """Turn down requests under another name than the server's, which a stranger's page makes by
    pointing its own name at this machine, and those that another page sends; add the headers."""

    def __init__(self, app, hosts: Sequence[str], headers: dict) -> None:
        self.app, self.headers = app, headers
        self.hosts = set(map(_plain, hosts))
        self.elsewhere = self.hosts - set(LOCAL)

    async def __call__(self, scope, receive, send):
        """Pass a request on, or answer it with 403."""
        begun = []

        async def with_headers(message):
            if message["type"] == "http.response.start":
                begun.append(message)
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        error = self._refused(Headers(scope=scope)) if scope["type"] == "http" else ""
        answer = JSONResponse({"error": error}, 403) if error else self.app
        try:
            await answer(scope, receive, with_headers)
        except asyncio.CancelledError:  # the server ends, and has waited for this one long enough
            if not begun:
                stopped = JSONResponse({"error": "the server was stopped; start it again"}, 503)
                await stopped(scope, receive, with_headers)

    def _refused(self, headers):
        host, origin = headers.get("host", ""), headers.get("origin")
        name = _name_of(f"//{host}")
        if name not in self.hosts:
            return f"the server is not known as {name!r}; start it with --allow {name or 'NAME'}"
        if origin is None or _place_of(origin) == host.lower():
            return ""
        # behind a proxy the page has the proxy's name, which --allow gives
        if _name_of(origin) in self.elsewhere:
            return ""
        return f"the page of {origin!r} may not ask this server; open the server's own page"


def _name_of(place):
    """Return the host's name in an address, "" where there is none."""
    try:
        return _plain(urlsplit(place).hostname or "")
    except ValueError:
        return ""


def _plain(name):
    """Return a host's name in the one form in which it is compared: an IPv6 address has many, and
    a zone, such as %eth0, that no other machine knows."""
    try:
        return ip_address(name.partition("%")[0]).compressed
    except ValueError:  # a name
        return name.lower()


def _place_of(origin):
    """Return name and port of a page's origin, None where there is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None
