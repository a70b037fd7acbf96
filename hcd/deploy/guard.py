"""Who may ask the server, and what its answers forbid a browser."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse


class Guard:
    """Turn down requests under another name than the server's, which a stranger's page makes by
    pointing its own name at this machine, and those that another page sends; add the headers."""

    def __init__(self, app, hosts: Sequence[str], headers: dict) -> None:
        self.app, self.hosts, self.headers = app, set(hosts), headers

    async def __call__(self, scope, receive, send):
        """Pass a request on, or answer it with 403."""

        async def with_headers(message):
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        error = self._refused(Headers(scope=scope)) if scope["type"] == "http" else ""
        answer = JSONResponse({"error": error}, 403) if error else self.app
        await answer(scope, receive, with_headers)

    def _refused(self, headers):
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname
        if name not in self.hosts:
            return f"the server is not known as {name!r}; start it with --allow {name}"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return f"the page of {origin!r} may not ask this server; open the server's own page"
        return ""
