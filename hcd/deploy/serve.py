"""`hcd serve`: listen, answer, and stop at Ctrl-C."""

import queue
import signal
import socket
import threading
from concurrent.futures import Executor, Future
from ipaddress import IPv6Address
from pathlib import Path

from ..errors import InputError
from ..export.bundle import load_bundle
from ..export.command import model_folder
from .settings import LOCAL
from .web import make_app

GRACE = 5  # seconds that requests have to end after Ctrl-C


def serve(options) -> int:
    """Serve a model until Ctrl-C or SIGTERM.

    Raises:
        InputError: no such model, or a place where nothing can be served.
    """
    uvicorn = _import_server()
    bundle = load_bundle(model_folder(Path(options.model)))
    worker = MainThread()
    host = _without_brackets(options.host)
    hosts = [*LOCAL, host, *map(_host_name, options.allow)]
    app = make_app(bundle, worker, hosts, options.device, options.fast)
    listening = _listen(host, options.port)
    place = _in_a_url(host, listening.getsockname()[1])
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)

    def stop(*_):
        server.should_exit = True

    before = {kind: signal.signal(kind, stop) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        thread.start()
        print(f"{options.model} answers at http://{place} until Ctrl-C", flush=True)
        while thread.is_alive():
            worker.work()
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
    print("stopped")
    return 0


class MainThread(Executor):
    """Do what other threads submit, here, one after the other.

    The network computes in the main thread because there it is a quarter faster: in others the C
    library hands the memory of every large layer back to the system, and fetches it anew.
    """

    def __init__(self) -> None:
        self.waiting: queue.SimpleQueue = queue.SimpleQueue()

    def submit(self, function, /, *args, **kwargs):
        """Take a call; returns a Future of what it returns."""
        future: Future = Future()
        self.waiting.put((future, function, args, kwargs))
        return future

    def work(self, seconds: float = 0.2) -> None:
        """Do the next call, if one comes in time."""
        try:
            future, function, args, kwargs = self.waiting.get(timeout=seconds)
        except queue.Empty:
            return
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:  # of the call's, and whoever submitted it is told
            future.set_exception(error)


def _host_name(name):
    """Require a name as browsers send it, or an address, without port or path."""
    name = _without_brackets(name)
    if not name or set(name) & (set("/ ") if _is_ipv6(name) else set(":/ []")):
        raise InputError(f"--allow {name!r} is no host's name; give it alone, such as lab.example")
    return name


def _without_brackets(name):
    """Return an IPv6 address without the brackets that it has in a URL."""
    inner = name[1:-1]
    return inner if name == f"[{inner}]" and _is_ipv6(inner) else name


def _is_ipv6(name):
    try:
        IPv6Address(name)
    except ValueError:
        return False
    return True


def _in_a_url(host, port):
    """Return host and port as a URL has them."""
    return f"[{host.replace('%', '%25')}]:{port}" if _is_ipv6(host) else f"{host}:{port}"


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
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # of a name that has both, such as localhost, IPv4, whose number is the smaller
        family, *_, address = min(places, key=lambda place: place[0])
        return socket.create_server(address, family=family)
    except (OSError, UnicodeError) as error:  # no address or no port, or a name that cannot be one
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"nothing can be served at {_in_a_url(host, port)} ({reason}); give another --port or"
            " --host"
        ) from error
