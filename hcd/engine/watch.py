"""Whether the other ranks live: a rank that dies, or that nobody hears of any more, ends the run of
all, and one of them says so."""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from datetime import timedelta

from ..terminal import tell
from .ranks import Ranks

BEAT = 2.0  # seconds between signs of life
# seconds without one, after which a rank counts as dead; torchrun gives a process that hangs 30
# more to end
SILENCE = 20.0


class Watch(threading.Thread):
    """A thread that gives signs of life and looks for those of the others, whatever the main thread
    waits for: a collective operation whose partner has died may wait for ever.

    Attributes:
        go_on: what stands after what has happened, such as how to go on with the run.
    """

    def __init__(self, ranks: Ranks, host: str, port: int) -> None:
        from torch.distributed import TCPStore

        super().__init__(daemon=True)
        self.ranks, self.go_on, self.left = ranks, "start the run again", False
        self.stderr = sys.stderr  # the main thread may put something in its place
        # a connection of its own, for the main thread may wait in the group's
        self.store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=10))
        self.woken, self.waker = socket.socketpair()
        self.waker.setblocking(False)

    def claim(self) -> bool:
        """Return whether this rank is the one to say what has happened; it is said once."""
        try:
            return self.store.add("hcd/told", 1) == 1
        except RuntimeError:  # the store was on a machine that is gone
            return True

    def run(self) -> None:
        """Beat and listen, until `leave` or the end of the process."""
        others = set(range(self.ranks.world)) - {self.ranks.rank}
        heard = {other: (0, time.monotonic()) for other in others}
        while not self.left:
            if select.select([self.woken], [], [], BEAT)[0]:
                if signal.SIGTERM in self.woken.recv(64):  # torchrun's, once a rank has died
                    self._end("a rank has died, or the run was stopped")
                continue
            try:
                self.store.add(f"hcd/beat{self.ranks.rank}", 1)
                for other, (count, when) in heard.items():
                    now = self.store.add(f"hcd/beat{other}", 0)
                    if now != count:
                        heard[other] = now, time.monotonic()
                    elif time.monotonic() - when > SILENCE and not self.left:
                        self._end(f"nothing was heard of rank {other} for {SILENCE:.0f} s")
            except RuntimeError:
                self._end("the machine of rank 0 cannot be reached any more")

    def leave(self) -> None:
        """Stop: the run is over."""
        self.left = True
        self.waker.send(b"\0")
        self.join()

    def _end(self, what):
        if self.left:
            return
        if self.claim():
            with redirect_stderr(self.stderr):
                tell(f"{what}; {self.go_on}")
        os._exit(1)  # the main thread may wait for the dead


@contextmanager
def watched(ranks: Ranks) -> Iterator[Watch]:
    """Watch the other ranks of a run that has been joined."""
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    watch = Watch(ranks, *place)
    # Python writes a signal's number there at once; its own handlers wait for the main thread
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    wake = signal.set_wakeup_fd(watch.waker.fileno(), warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_forget)  # a reader of patches ends when it is told to
    watch.start()
    try:
        yield watch
    finally:
        watch.leave()
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGTERM, before)


def _forget() -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
