"""One function over many patches, on all cores that this process may use."""

import math
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import InputTypeError
from .shown import progress_bar


def usable_cpus() -> int:
    """Count the CPUs that this process may use, which in a container or on a cluster are fewer than
    the host has.

    Returns:
        the CPUs that it is bound to, and no more than its control groups' quota, rounded up; at
        least 1.
    """
    if hasattr(os, "sched_getaffinity"):
        bound = len(os.sched_getaffinity(0))
    else:  # macOS and Windows
        bound = os.cpu_count() or 1
    return max(1, math.ceil(min(bound, cpu_quota())))


def cpu_quota(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the smallest quota of this process's control group and of those above it, in CPUs;
    infinity where there is none.

    Args:
        proc, groups: where Linux shows processes and control groups, of version 1 or 2.
    """
    quotas = [math.inf]
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers == "":
            quotas += [_quota(folder, "cpu.max") for folder in _upwards(groups, path)]
            # of both versions at once
            quotas += [_quota(folder, "cpu.max") for folder in _upwards(groups / "unified", path)]
        elif "cpu" in controllers.split(","):
            for mount in {controllers, "cpu", "cpu,cpuacct"}:
                quotas += [
                    _quota(folder, "cpu.cfs_quota_us", "cpu.cfs_period_us")
                    for folder in _upwards(groups / mount, path)
                ]
    return min(quotas)


def _upwards(mount, path):
    """Return the folders of a group and of all above it; a container sees the host's path and only
    the last of them."""
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    return [mount.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _quota(folder, *names):
    """Return time over period, in CPUs; infinity where the files are not there or set no bound."""
    words = [word for name in names for word in " ".join(_lines(folder / name)).split()]
    if len(words) != 2 or not all(word.isdecimal() for word in words):  # "max", or -1
        return math.inf
    time, period = map(int, words)
    return time / period if time and period else math.inf


def _lines(path):
    """Return the lines of a file of the kernel's; none where it is not there or closed to us."""
    try:
        return path.read_text("utf-8", errors="replace").splitlines()
    except OSError:  # no Linux, or hidden: then there is no quota to follow
        return []


def listed_paths(paths: Any) -> list:
    """Return paths as a list, whatever yields them.

    Raises:
        InputTypeError: one path alone, whose letters would be taken for paths.
    """
    if isinstance(paths, (str, bytes, os.PathLike)):
        raise InputTypeError(
            f"paths={os.fspath(paths)!r} is one path; give a list of files, such as"
            " sorted(Path(folder).glob('*.tif'))"
        )
    return list(paths)


def map_patches(
    function: Callable[[Any], Any],
    paths: Sequence,
    title: str,
    progress: bool = True,
    chunk: int = 64,
) -> Generator[Any, None, None]:
    """Yield `function(path)` for every path, in order, computed on all usable cores with a progress
    bar.

    Threads are enough: OpenCV decodes outside Python's lock, and starts none of its own for what is
    as small as a patch. Chunks keep 220,025 futures from existing at once.
    """
    chunks = [paths[start : start + chunk] for start in range(0, len(paths), chunk)]
    with (
        ThreadPoolExecutor(usable_cpus()) as pool,
        progress_bar(len(paths), title, progress) as bar,
    ):
        try:
            for results in pool.map(lambda part: [function(path) for path in part], chunks):
                # first, for a caller that zips with `paths` does not come back after the last one
                bar.update(len(results))
                yield from results
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C and errors do not wait for the rest
