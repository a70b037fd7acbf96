"""`hcd serve`: listen, answer, and stop at Ctrl-C."""

import socket
from contextlib import suppress
from pathlib import Path

from ..errors import InputError
from ..export.bundle import load_bundle
from ..export.command import model_folder
from .web import LOCAL, make_app


def serve(options) -> int:
    """Serve a model until Ctrl-C.

    Raises:
        InputError: no such model, or a place where nothing can be served.
    """
    uvicorn = _import_server()
    bundle = load_bundle(model_folder(Path(options.model)))
    app = make_app(bundle, [*LOCAL, options.host, *options.allow], options.device, options.fast)
    listening = _listen(options.host, options.port)
    port = listening.getsockname()[1]
    print(f"{options.model} answers at http://{options.host}:{port} until Ctrl-C", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
    print("stopped")
    return 0


def _import_server():
    """Return uvicorn, once all that the extra [serve] brings is there."""
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise InputError(
            f"`hcd serve` needs {error.name}, which is not installed; install it with"
            " pip install 'hcd[serve]'"
        ) from error
    return uvicorn


def _listen(host, port):
    """Return a socket that listens."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port} is no port; give 1 to 65535, or 0 for a free one")
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise InputError(
            f"nothing can be served at {host}:{port} ({error.strerror}); give another --port or"
            " --host"
        ) from error
