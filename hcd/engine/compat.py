"""What makes fastai 1.0.61 of 2020 run on today's versions; the only file that knows about
versions.

Nothing here changes another library, but that one change which fastai makes in torch is undone, see
`give_back_torchs_loader`: each piece is a class or function of its own that the rest of hcd uses,
and names the version that needs it. Three more are held in setup.py: setuptools below 82,
which has no pkg_resources any more (ModuleNotFoundError on `import fastai`); fastprogress below
1.1, which pulls in a web framework; IPython below 10, since fastprogress 1.0 compares versions as
text, where "10" comes before "6.0.0", and would draw a terminal's bars in a notebook.
"""

import gc
import io
import pickle
import platform
import warnings
from difflib import get_close_matches
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.error import URLError

import cv2
import numpy as np
import torch
import torchvision

from ..disk.whole import whole_write, writable_folder
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

# what fastai exports of a learner, besides model and data
EXPORTED = (
    "opt_func",
    "loss_func",
    "metrics",
    "true_wd",
    "bn_wd",
    "wd",
    "train_bn",
    "model_dir",
    "callback_fns",
)


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


class Learner(fastai.basic_train.Learner):
    """fastai's Learner, saving whole files and loading them under torch >= 2.6's weights_only=True.

    There fastai's own `load` raises UnpicklingError after a fit, and so does its `lr_find`, which
    ends by loading a temporary save.

    CHANGED C2: fastai's `load` swallows a failed restore of the optimiser state; this one raises.
    """

    callback_fns: list

    def fit(
        self,
        epochs: int,
        lr: Any = fastai.basic_train.defaults.lr,
        wd: Any = None,
        callbacks: Any = None,
    ) -> None:
        """Fit as fastai does, and show each callback that asks for it, by its `before_fit`, all
        callbacks of the fit before any of them has begun."""
        callbacks = fastai.core.listify(callbacks)
        made = [make(self) for make in self.callback_fns]
        everyone = [*made, *self.callbacks, *callbacks]
        for callback in everyone:
            if hasattr(callback, "before_fit"):
                callback.before_fit(epochs, everyone)
        # fastai makes them in `fit`, once for each; these are made already
        makers, self.callback_fns = self.callback_fns, [lambda _, one=one: one for one in made]
        try:
            super().fit(epochs, lr, wd, callbacks)
        finally:
            self.callback_fns = makers

    def save(
        self, file: Any = None, return_path: bool = False, with_opt: Any = True
    ) -> Path | None:
        """Save model and optimiser state as fastai's `Learner.save` does; an interrupted save
        leaves the older file."""
        if not isinstance(file, (str, bytes)) and hasattr(file, "write"):
            return super().save(file, return_path, with_opt)
        target = self.path / self.model_dir / f"{file}.pth"
        writable_folder(target.parent)
        content = io.BytesIO()  # torch's own writer reports a full disk as "unexpected pos"
        super().save(content, with_opt=with_opt)
        with whole_write(target) as opened:
            opened.write(content.getbuffer())
        return target if return_path else None

    def load(
        self,
        file: Any = None,
        device: Any = None,
        strict: bool = True,
        with_opt: Any = None,
        purge: bool = False,
        remove_module: bool = False,
    ) -> Any:
        """Load what `save` wrote; see fastai's `Learner.load`. `lr_find` calls it to undo its own
        steps.

        `device` is there for fastai's callers: the values go into the model where it is, by way of
        the CPU.

        Raises:
            FileNotFoundError: no such file. InputError: damaged file, weights of another model, or
                an optimiser state for other layers, found when the model has its weights already.
        """
        if purge or remove_module:
            raise InputError(
                "purge and remove_module are not supported by hcd's Learner.load; leave them False,"
                " and call Learner.purge before"
            )
        source = file if hasattr(file, "read") else self.path / self.model_dir / f"{file}.pth"
        state = load_tensors(source)
        if not isinstance(state, dict):
            raise InputError(
                f"{source} holds a {type(state).__name__} where weights by name belong; use a file"
                " that Learner.save wrote"
            )
        has_opt = set(state) == {"model", "opt"}
        if with_opt and not has_opt:
            raise InputError(f"{source} holds no optimiser state; load it with with_opt=False")
        try:
            self.model.load_state_dict(state["model"] if has_opt else state, strict=strict)
        except (RuntimeError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[-1].strip()[:160]
            raise InputError(
                f"{source} holds the weights of another model ({reason}); build the learner with"
                " the arch that was saved"
            ) from error
        if has_opt and with_opt is not False:
            if not hasattr(self, "opt"):
                self.create_opt(fastai.basic_train.defaults.lr, self.wd)
            try:
                self.opt.load_state_dict(state["opt"])
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise InputError(
                    f"{source} holds the optimiser state of other trainable layers ({error});"
                    " freeze or unfreeze as when it was saved, or load it with with_opt=False"
                ) from error
        del state
        gc.collect()
        return self

    def purge(self, clear_opt: bool = True) -> "Learner":
        """Drop gradients and, unless told to keep it, the optimiser, to release memory.

        CHANGED C22: fastai's own writes everything to a pickle, deletes it from the learner, and
        since torch 2.6 fails to load it again; this one never lets go of the model.
        """
        if clear_opt:
            self.__dict__.pop("opt", None)
        for values in self.model.parameters():
            values.grad = None
        gc.collect()
        return self

    def export(self, file: Any = "export.pkl", destroy: bool = False) -> None:
        """Write what `load_export` reads, as fastai's `Learner.export` does, with the recipe and
        source of the patches, the batch size and the layer groups too.

        Args:
            file: name under the learner's path, written whole, or a file opened for writing.
            destroy: empty the learner afterwards.
        Raises:
            InputError: the learner holds what pickle cannot write, such as a lambda. OSError: the
                file cannot be written.

        CHANGED C23: fastai's own keeps only the class of the item list, so that the learner reads
        patches by another recipe once it is loaded; and it leaves a file that it opened open.
        """
        if fastai.torch_core.rank_distrib():
            return
        content = io.BytesIO()
        with fastai.torch_core.ModelOnCPU(self.model) as model:
            try:
                torch.save(self._export_state(model), content)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise InputError(
                    f"the learner cannot be exported ({' '.join(str(error).split())[:160]}); take"
                    " what pickle cannot write out of it, or hand the model on with save_bundle"
                ) from error
        if hasattr(file, "write"):
            file.write(content.getbuffer())
        else:
            target = Path(self.path, file)
            writable_folder(target.parent)
            with whole_write(target) as opened:
                opened.write(content.getbuffer())
        if destroy:
            self.destroy()

    def _export_state(self, model):
        """Return the dict that fastai's `load_learner` takes, see `export`."""
        patches, valid = self.data.valid_ds.x, self.data.valid_ds
        norm = getattr(self.data, "norm", None)
        data = valid.get_state(**({"normalize": norm.keywords} if norm else {}))
        if hasattr(patches, "recipe"):
            kind: Any = type(patches)
            # fastai builds the empty list by calling this
            data["x_cls"] = partial(kind, recipe=patches.recipe, source=patches.source)
        return {
            **{name: getattr(self, name) for name in EXPORTED},
            "cb_state": {type(callback): callback.get_state() for callback in self.callbacks},
            "model": model,
            "layer_groups": self.layer_groups,
            "data": {**data, "batch_size": self.data.valid_dl.batch_size},
            "cls": type(self),
        }


def load_trusted_export(path, recipe=None):
    """Rebuild a learner from fastai's `Learner.export`, as fastai's `load_learner`, which raises
    UnpicklingError since torch 2.6.

    A full unpickle RUNS CODE in the file. Only `export.load_export` calls this, and only when told
    to trust the file. `recipe` is for files of hcd 0.1.0, which kept none.
    """
    state = torch.load(path, map_location="cpu", weights_only=False)
    model, kept = state.pop("model"), state.pop("data")
    source = fastai.vision.LabelLists.load_state(Path(path).parent, kept)
    _set_recipe(path, source, recipe, known=isinstance(kept["x_cls"], partial))
    callbacks, kind = state.pop("cb_state"), state.pop("cls")
    # a sum's last bits hang on the size of the batch
    data = source.databunch(
        bs=kept.get("batch_size", 64), device=torch.device("cpu"), num_workers=0, pin_memory=False
    )
    # fastai passes the option on to every loader but this one, and torch >= 2.7 warns
    data.single_dl.dl.pin_memory = False
    learner = kind(data, model, **state)
    learner.callback_fns = state["callback_fns"]
    learner.callbacks = [
        fastai.basic_train.load_callback(kind, kept, learner) for kind, kept in callbacks.items()
    ]
    return learner


def _set_recipe(path, source, recipe, known):
    """Require the recipe that an exported learner reads its patches by: the file's own, or the one
    that is given where the file has none."""
    for items in (source.train.x, source.valid.x):
        if not hasattr(items, "recipe"):
            continue
        if not known and recipe is None:
            raise InputError(
                f"{path} was exported by hcd 0.1.0, which kept no recipe; pass recipe= as it was"
                " when the learner was built"
            )
        if known and recipe not in (None, items.recipe):
            raise InputError(
                f"{path} was exported with another recipe than the one given; leave recipe= out"
            )
        items.recipe = items.recipe if known else recipe


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
        for the dead in every pass."""
        if self._iterator is not None and not all(
            worker.is_alive() for worker in self._iterator._workers
        ):
            self._iterator._shutdown_workers()
            self._iterator = None
        return super().__iter__()


def find_arch(arch):
    """Return the model builder for a torchvision model's name, or `arch` itself when it is a
    callable.

    Raises:
        InputError: torchvision has no such classification model.
    """
    if callable(arch):
        return arch
    names = torchvision.models.list_models(torchvision.models)
    if arch not in names:
        close = get_close_matches(arch, names, 3, 0.4) or ["densenet169"]
        raise InputError(
            f"arch={arch!r} is no model of torchvision {torchvision.__version__}; did you mean"
            f" {', '.join(close)}?"
        )
    return getattr(torchvision.models, arch)


def with_pretrained_flag(arch):
    """Return `arch` as fastai calls it, `arch(pretrained: bool)`.

    torchvision >= 0.13 takes weights= instead and warns; >= 0.15 no longer takes `pretrained` by
    position for all models. The weights are IMAGENET1K_V1, those that the walkthrough downloaded.
    """
    if not _is_torchvision(arch):
        return arch
    return lambda pretrained: arch(weights=_imagenet_weights(arch) if pretrained else None)


def require_weights(arch):
    """Require the ImageNet weights of a torchvision model, in torch's cache or to be downloaded
    now.

    Args:
        arch: model builder, see `find_arch`; one that is not torchvision's brings its own weights
            and passes.
    Raises:
        FileNotFoundError: not there and not to be had. InputError: damaged, or none were ever
            trained.
    """
    if not _is_torchvision(arch):
        return
    weights = _imagenet_weights(arch)
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(file), file.stem.rsplit("-", 1)[1])
        except (URLError, OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"no pretrained weights for {arch.__name__}: {file} is missing and cannot be"
                f" downloaded ({error}); put the file there or use pretrained=False"
            ) from error
    load_tensors(file)  # torchvision itself would unpickle the file in full


def _is_torchvision(arch):
    name = getattr(arch, "__name__", "")
    return (
        name in torchvision.models.list_models(torchvision.models)
        and getattr(torchvision.models, name) is arch
    )


def _imagenet_weights(arch):
    kinds = torchvision.models.get_model_weights(arch)
    if "IMAGENET1K_V1" not in kinds.__members__:
        raise InputError(
            f"torchvision has no IMAGENET1K_V1 weights for {arch.__name__}; use pretrained=False or"
            " another arch"
        )
    return kinds["IMAGENET1K_V1"]


def library_versions():
    """Return the versions of Python and of the libraries that the numbers depend on, as a dict of
    str."""
    names = ("hcd", "torch", "torchvision", "fastai", "numpy", "pandas", "scikit-learn")
    return {
        "python": platform.python_version(),
        "opencv": cv2.__version__,
        **{name: version(name) for name in names},
    }
