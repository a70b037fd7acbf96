"""Threads follow the CPUs that a process may use, not those of the host."""

import math
import os
import subprocess
import sys

import pytest
from conftest import CHECKOUT

from hcd.disk import parallel
from hcd.disk.parallel import cpu_quota, map_patches, usable_cpus


def machine(tmp_path, cgroup, **files):
    """A /proc and a /sys/fs/cgroup with these files; "__" in a name stands for "/"."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = tmp_path / "groups" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "proc", tmp_path / "groups"


V1 = "cpu_DOT_cfs_quota_us", "cpu_DOT_cfs_period_us"


@pytest.mark.parametrize(
    "cgroup, files, quota",
    [
        # version 2: of its own group, of one above it, of the only one that a container sees
        ("0::/a/b\n", {"a__b__cpu_DOT_max": "150000 100000\n"}, 1.5),
        (
            "0::/a/b\n",
            {"a__b__cpu_DOT_max": "max 100000\n", "a__cpu_DOT_max": "50000 100000\n"},
            0.5,
        ),
        ("0::/\n", {"cpu_DOT_max": "400000 100000\n"}, 4),
        ("0::/not/seen/here\n", {"cpu_DOT_max": "200000 100000\n"}, 2),
        ("0::/../../other\n", {"cpu_DOT_max": "200000 100000\n"}, 2),
        ("0::/a\n", {"a__cpu_DOT_max": "max 100000\n"}, math.inf),
        # version 1
        (
            "4:memory:/m\n3:cpu,cpuacct:/c\n",
            {f"cpu,cpuacct__c__{V1[0]}": "300000\n", f"cpu,cpuacct__c__{V1[1]}": "100000\n"},
            3,
        ),
        (
            "1:cpu:/docker/of/the/host\n0::/\n",
            {f"cpu__{V1[0]}": "25000\n", f"cpu__{V1[1]}": "100000\n"},
            0.25,
        ),
        ("1:cpu:/\n", {f"cpu__{V1[0]}": "-1\n", f"cpu__{V1[1]}": "100000\n"}, math.inf),
        ("2:cpuset:/c\n", {f"cpu__{V1[0]}": "25000\n", f"cpu__{V1[1]}": "100000\n"}, math.inf),
        # both at once
        ("1:name=x:/\n0::/u\n", {"unified__u__cpu_DOT_max": "700000 100000\n"}, 7),
        # nothing that can be read
        ("", {}, math.inf),
        ("nonsense\n0::/a\n", {"a__cpu_DOT_max": "\0\xff"}, math.inf),
        ("0::/a\n", {"a__cpu_DOT_max": "100000 0\n"}, math.inf),
    ],
)
def test_the_smallest_quota_counts(tmp_path, cgroup, files, quota):
    assert cpu_quota(*machine(tmp_path, cgroup, **files)) == quota


def test_no_linux_has_no_quota(tmp_path):
    assert cpu_quota(tmp_path / "none", tmp_path / "neither") == math.inf


@pytest.mark.parametrize(
    "bound, quota, cpus", [(8, math.inf, 8), (8, 1.5, 2), (2, 7, 2), (4, 0.25, 1), (4, 4.0, 4)]
)
def test_the_fewer_of_bound_and_quota_rounded_up(monkeypatch, bound, quota, cpus):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(bound)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 999)  # the host's
    monkeypatch.setattr(parallel, "cpu_quota", lambda: quota)
    assert usable_cpus() == cpus


def test_without_affinity_the_machine_counts(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(parallel, "cpu_quota", lambda: math.inf)
    for count, cpus in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert usable_cpus() == cpus


def test_map_patches_takes_no_more_threads(monkeypatch):
    import threading

    monkeypatch.setattr(parallel, "usable_cpus", lambda: 3)
    names = set(
        map_patches(lambda _: threading.current_thread().name, range(90), "", False, chunk=1)
    )
    assert 1 <= len(names) <= 3


THREADS = """
import os, numpy as np, random, hcd, hcd.stats, hcd.reader, cv2
cv2.setNumThreads(8)
patch = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
before = len(os.listdir("/proc/self/task"))
for _ in range(50):
    hcd.reader.augment(patch)
    hcd.stats._measure(patch, *np.empty((2, 3, 1)))
print(len(os.listdir("/proc/self/task")) - before, end=" ")
large = cv2.warpAffine(np.zeros((4000, 4000, 3), np.uint8), np.eye(2, 3), (4000, 4000))
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux shows")
def test_opencv_starts_no_threads_for_a_patch():
    """Else every thread of map_patches, and every worker, would have a pool of OpenCV's beside
    it."""
    settings = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-c", THREADS]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    patch, large = map(int, done.stdout.split())
    assert patch == 0
    assert large > 0  # or the line above shows nothing
