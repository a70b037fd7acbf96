"""What makes fastai 1.0.61 of 2020 import and read on today's versions; `saving` has its Learner,
`arch` torchvision's models.

Nothing here changes another library, but that one change which fastai makes in torch is undone, see
`give_back_torchs_loader`: each piece is a class or function of its own that the rest of hcd uses,
and names the version that needs it. Three more are held in setup.py: setuptools below 82,
which has no pkg_resources any more (ModuleNotFoundError on `import fastai`); fastprogress below
1.1, which pulls in a web framework; IPython below 10, since fastprogress 1.0 compares versions as
text, where "10" comes before "6.0.0", and would draw a terminal's bars in a notebook.
"""

import atexit
import io
import platform
import warnings
import weakref
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ..errors import InputError

# setuptools >= 67 warns that pkg_resources goes, Python >= 3.12 about escapes in fastai's own
# source. catch_warnings would also take back the filters that fastai and the libraries below it set
# for themselves on import.
QUIET = ("ignore", None, Warning, None, 0)
warnings.filters.insert(0, QUIET)  # type: ignore[attr-defined]
try:
    import fastai.basic_data
    import fastai.basic_train
    import fastai.vision
finally:
    warnings.filters.remove(QUIET)  # type: ignore[attr-defined]

DataBunch = fastai.basic_data.DataBunch

# torch >= 2.6 loads with weights_only=True and turns down the numpy scalars that fastai's schedules
# leave in the optimiser state ("Unsupported global: numpy.core.multiarray.scalar"). These types
# hold plain numbers; loading them runs no code. The slice is fastai's default learning rate, which
# `freeze` and `unfreeze` leave in a new optimiser's state until the first fit.
OPTIMISER_TYPES = [
    np.float64(0).__reduce__()[0],
    np.dtype,
    *{type(np.dtype(kind)) for kind in "efdilq?"},
    slice,
]


def load_tensors(file):
    """Load a file of tensors and plain numbers, onto the CPU; code in it is never run.

    Args:
        file: path, or file opened for reading, of a `torch.save`.
    Raises:
        FileNotFoundError: no such file. OSError: it cannot be read. InputError: damaged, or holds
            more than tensors and numbers.
    """
    try:
        # of a file on disk, torch would ask for whatever length damaged bytes claim; of bytes in
        # memory, for no more than there are
        content = file.read() if hasattr(file, "read") else Path(file).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise FileNotFoundError(
            f"{file} does not exist or is no file; save the model first or name another file"
        ) from None
    try:
        with torch.serialization.safe_globals(OPTIMISER_TYPES), warnings.catch_warnings():
            # of other pickle protocols than torch's own, whether it can read them or not
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:
        # torch's unpickler lets a dozen kinds out of damaged bytes, from IndexError to struct.error
        reason = str(error)
        for torch_advice in ("trusted source.", "WeightsUnpickler error:"):
            reason = reason.split(torch_advice)[-1]
        reason = " ".join(reason.split()).split(". ")[0].rstrip(".")[:200] or type(error).__name__
        raise InputError(
            f"{file} cannot be loaded as plain weights ({reason}); it is damaged or holds code, use"
            " a file that Learner.save wrote"
        ) from error


def loader_options(loader: torch.utils.data.DataLoader) -> dict:
    """Return the keywords that build a torch DataLoader like this one, read from the loader itself.

    fastai's DeviceDataLoader makes its copies from them, with some replaced.
    """
    sampling, sampler = torch.utils.data, loader.sampler
    own_batches = loader.batch_size is None and loader.batch_sampler is not None
    shuffle = (
        type(sampler) is sampling.RandomSampler
        and sampler.generator is loader.generator
        and not sampler.replacement
        and sampler.num_samples == len(loader.dataset)
    )
    if own_batches or shuffle or type(sampler) is sampling.SequentialSampler:
        sampler = None
    options = {
        "batch_size": 1 if own_batches else loader.batch_size,
        "shuffle": shuffle,
        "sampler": sampler,
        "batch_sampler": loader.batch_sampler if own_batches else None,
        "drop_last": loader.drop_last,
    }
    kept = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn")
    options.update({name: getattr(loader, name) for name in kept})
    usual = {
        "generator": (None,),
        "multiprocessing_context": (None,),
        "persistent_workers": (False,),
        "prefetch_factor": (None, 2),
    }
    for name, values in usual.items():
        if getattr(loader, name) not in values and (loader.num_workers or name == "generator"):
            options[name] = getattr(loader, name)
    return options


def _loader_attribute(loader, name):
    """Give fastai what a loader lacks: the keywords it was built with, else what its data set
    has."""
    if name == "init_kwargs":
        return loader_options(loader)
    if name == "dataset":  # not there yet, while it is unpickled
        raise AttributeError(name)
    return getattr(loader.dataset, name)


def give_back_torchs_loader() -> None:
    """Give torch's DataLoader its own `__init__` back, which importing fastai replaces.

    fastai's knows none of generator (new in torch 1.6), persistent_workers and prefetch_factor
    (1.7), so that any other code in the process fails: TypeError, unexpected keyword argument. And
    it asks for pinned memory, of which torch warns on a CPU. fastai notes the keywords there; here
    they are read from the loader when fastai asks, in the `__getattr__` that it has put there too.
    """
    loader = torch.utils.data.DataLoader
    if loader.__init__ is fastai.basic_data.intercept_args:
        loader.__init__ = fastai.basic_data.old_dl_init
        loader.__getattr__ = _loader_attribute


give_back_torchs_loader()


class DataLoader(torch.utils.data.DataLoader):
    """torch's DataLoader, whose workers that persist are replaced when they have died."""

    _iterator: Any

    def __init__(self, dataset, **kwargs):
        super().__init__(dataset, **kwargs)
        self.init_kwargs = kwargs  # fastai's DeviceDataLoader.new builds copies from these

    def __iter__(self):
        """Begin a pass, with new workers where one of those that persist has died; torch would wait
        for the dead in every pass.

        torch 2.11 waits 5 s at the program's end for each worker that persists and pins memory,
        without having told it to stop, minutes on a GPU (2.14 does not); they are told here. What
        was registered last is done first, so theirs must have been registered before.
        """
        if self._iterator is not None and not all(
            worker.is_alive() for worker in self._iterator._workers
        ):
            self._iterator._shutdown_workers()
            self._iterator = None
        first = self._iterator is None
        found = super().__iter__()
        if first and self._iterator is not None:
            atexit.register(_stop_workers, weakref.ref(self._iterator))
        return found


def _stop_workers(reference):
    """End a loader's workers, if it is still there."""
    iterator = reference()
    if iterator is not None:
        iterator._shutdown_workers()


def library_versions():
    """Return the versions of Python and of the libraries that the numbers depend on, as a dict of
    str."""
    names = ("hcd", "torch", "torchvision", "fastai", "numpy", "pandas", "scikit-learn")
    return {
        "python": platform.python_version(),
        "opencv": cv2.__version__,
        **{name: version(name) for name in names},
    }
