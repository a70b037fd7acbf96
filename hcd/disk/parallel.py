"""One function over many patches, on all cores."""

import os
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm


def map_patches(function, paths, title, progress=True, chunk=64):
    """Yield `function(path)` for every path, in order, computed on all cores with a progress bar.

    Threads are enough: OpenCV decodes outside Python's lock. Chunks keep 220,025 futures from
    existing at once.
    """
    chunks = [paths[start : start + chunk] for start in range(0, len(paths), chunk)]
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(paths), desc=title, disable=not progress) as bar,
    ):
        try:
            for results in pool.map(lambda part: [function(path) for path in part], chunks):
                # first, for a caller that zips with `paths` does not come back after the last one
                bar.update(len(results))
                yield from results
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C and errors do not wait for the rest
