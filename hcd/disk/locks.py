"""One writer at a time in a folder, as long as a process lives.

The lock is flock on a descriptor of our own: it holds when the process opens and closes the file
again (POSIX record locks are lost then), and it is not passed on: neither to a program that is
started nor to a forked worker, which would keep it beyond the life of its parent. The library
filelock does the same since its version 4, which needs Python 3.11; those for 3.10 hand the lock
on to workers, and leave a marker file where there are no locks.
"""

import errno
import os
import time

try:
    import fcntl
except ImportError:  # Windows has none, and there nothing is locked
    fcntl = None  # type: ignore[assignment]

# of a file system without locks, as some network disks; one run at a time is then up to its user
NO_LOCKS = {errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}
PATIENCE = 5.0  # seconds; a process that is just being stopped gets a moment to end
LOCK_FILE = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
LOCK_FOLDER = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
_held: set[int] = set()  # descriptors of this process


class Lock:
    """A lock that is held until `release` or the end of the process."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        _held.add(descriptor)

    def release(self) -> None:
        """Let others have it."""
        if self.descriptor in _held:
            _held.remove(self.descriptor)
            os.close(self.descriptor)


def take_lock(path, held_by: str, patience: float = PATIENCE) -> Lock:
    """Lock the file `path`, or the folder.

    Args:
        path: the lock file, made when missing, or a folder that is there. held_by: the sentence
            for one that another holds.
        patience: seconds to wait for it.
    Returns:
        Lock, to be kept.
    Raises:
        BlockingIOError: another process, or another lock of this one, holds it; says `held_by`.
        OSError: it cannot be opened, or is a link.
    """
    try:
        descriptor = os.open(path, LOCK_FOLDER if os.path.isdir(path) else LOCK_FILE, 0o644)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(
            f"{path} is a link, and nothing is locked through links; remove it"
        ) from error
    end = time.monotonic() + patience
    while fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno in NO_LOCKS:
                break
            if time.monotonic() > end:
                os.close(descriptor)
                raise BlockingIOError(held_by) from error
            time.sleep(0.1)
    return Lock(descriptor)


def _forget() -> None:
    """Close a forked child's share in its parent's locks; the parent goes on holding them."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
