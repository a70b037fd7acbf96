"""fastai's Learner, whose saves, exports and loads are whole files and work on today's torch."""

import gc
import io
import pickle
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ..disk.shown import progress_bar
from ..disk.whole import whole_write, writable_folder
from ..errors import InputError
from .bars import FitBar, OneBar, close_bars
from .compat import fastai, load_tensors
from .given import unwrapped
from .graphs import forget_steps
from .ranks import is_first, on_first
from .sharded import in_step

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


# where the classes lay that an earlier hcd's exports name
MOVED = {
    "hcd.compat": "hcd.engine.saving",
    "hcd.fast": "hcd.engine.fast",
    "hcd.engine.compat": "hcd.engine.saving",
}


class Learner(fastai.basic_train.Learner):
    """fastai's Learner, saving whole files and loading them under torch >= 2.6's weights_only=True.

    There fastai's own `load` raises UnpicklingError after a fit, and so does its `lr_find`, which
    ends by loading a temporary save.

    CHANGED C2: fastai's `load` swallows a failed restore of the optimiser state; this one raises.
    """

    callback_fns: list
    trained_on: Any = None  # the databunch of the last fit

    def fit(
        self,
        epochs: int,
        lr: Any = fastai.basic_train.defaults.lr,
        wd: Any = None,
        callbacks: Any = None,
    ) -> None:
        """Fit as fastai does, and show each callback that asks for it, by its `before_fit`, all
        callbacks of the fit before any of them has begun."""
        self.trained_on = self.data
        callbacks = fastai.core.listify(callbacks)
        made = [make(self) for make in self.callback_fns]
        everyone = [*made, *self.callbacks, *callbacks]
        for callback in everyone:
            if hasattr(callback, "before_fit"):
                callback.before_fit(epochs, everyone, lr, wd)
        # fastai makes them in `fit`, once for each; these are made already
        makers, self.callback_fns = self.callback_fns, [lambda _, one=one: one for one in made]
        try:
            with in_step(self):
                super().fit(epochs, lr, wd, [*callbacks, FitBar()])
        finally:
            self.callback_fns = makers
            close_bars(self)
            forget_steps(self.model)  # where a callback has failed before fastai's own try

    def lr_find(
        self,
        start_lr: Any = 1e-7,
        end_lr: Any = 10,
        num_it: int = 100,
        stop_div: bool = True,
        wd: Any = None,
        bar: Any = None,
    ) -> None:
        """Run fastai's range test under one progress bar; fastai's own would stay when it is over.

        Args:
            bar: open tqdm bar that counts the batches; None opens one. The others: fastai's.
        """
        own = progress_bar(num_it, "learning-rate range test") if bar is None else nullcontext(bar)
        with own as shown:
            one_bar = OneBar(shown)
            self.callbacks.append(one_bar)
            try:
                fastai.train.lr_find(self, start_lr, end_lr, num_it, stop_div, wd)
            finally:
                self.callbacks.remove(one_bar)

    def predict(self, item: Any, *args: Any, **kwargs: Any) -> Any:
        """Predict one image, as fastai does, by its centre crop where the learner was trained on
        crops.

        Args:
            item: fastai Image, a whole patch or a crop of it.
        Raises:
            InputError: an image of another size than either.

        CHANGED C27: fastai's own would shrink the whole patch to the crop's size.
        """
        recipe = getattr(self.data.train_ds.x, "recipe", None)
        size = tuple(getattr(item, "shape", ()))[-2:]
        if recipe is not None and size == (recipe.original_size, recipe.original_size):
            inside = slice(recipe.margin, recipe.margin + recipe.crop_size)
            item = type(item)(item.px[:, inside, inside].contiguous())
        elif recipe is not None and size not in ((), (recipe.crop_size, recipe.crop_size)):
            shown = " x ".join(map(str, size[::-1]))
            raise InputError(
                f"the image is {shown} px; give a patch of {recipe.original_size} px or a crop of"
                f" {recipe.crop_size} px, as the learner was trained on"
            )
        return super().predict(item, *args, **kwargs)

    def validate(self, dl: Any = None, callbacks: Any = None, metrics: Any = None) -> Any:
        """Validate as fastai does.

        Raises:
            InputError: a set without labels.

        CHANGED C28: fastai's own fills their place with zeros and counts who predicts 0 as right.
        """
        items = getattr(getattr(dl, "dataset", None), "y", None)
        if isinstance(items, fastai.data_block.EmptyLabelList):
            raise InputError(
                "the set has no labels, so there is nothing to validate; give data.valid_dl, or"
                " predict it with get_preds"
            )
        return super().validate(dl, callbacks, metrics)

    def save(
        self, file: Any = None, return_path: bool = False, with_opt: Any = True
    ) -> Path | None:
        """Save model and optimiser state as fastai's `Learner.save` does; an interrupted save
        leaves the older file."""
        if not isinstance(file, (str, bytes)) and hasattr(file, "write"):
            return super().save(file, return_path, with_opt)
        target = self.path / self.model_dir / f"{file}.pth"
        if not is_first():
            return target if return_path else None
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
        state = on_first(lambda: load_tensors(source))
        if not isinstance(state, dict):
            raise InputError(
                f"{source} holds a {type(state).__name__} where weights by name belong; use a file"
                " that Learner.save wrote"
            )
        has_opt = set(state) == {"model", "opt"}
        if with_opt and not has_opt:
            raise InputError(f"{source} holds no optimiser state; load it with with_opt=False")
        try:
            # what fastai saves of a model in DataParallel is the model without it
            model = unwrapped(self.model)
            model.load_state_dict(state["model"] if has_opt else state, strict=strict)
        except (RuntimeError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[-1].strip()[:160]
            raise InputError(
                f"{source} holds the weights of another model ({reason}); build the learner with"
                " the arch that was saved"
            ) from error
        if has_opt and with_opt is not False:
            self._restore_opt(source, state["opt"])
        return self

    def _restore_opt(self, source, state):
        if not hasattr(self, "opt"):
            self.create_opt(fastai.basic_train.defaults.lr, self.wd)
        try:
            self.opt.load_state_dict(state)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{source} holds the optimiser state of other trainable layers ({error});"
                " freeze or unfreeze as when it was saved, or load it with with_opt=False"
            ) from error

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
        if not is_first():
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


class _Unpickler(pickle.Unpickler):
    """Finds the classes of hcd's exports wherever they lie today."""

    def find_class(self, module, name):
        return super().find_class(MOVED.get(module, module), name)


WITH_MOVED = SimpleNamespace(Unpickler=_Unpickler, load=pickle.load, __name__="pickle")


def load_trusted_export(path, recipe=None):
    """Rebuild a learner from fastai's `Learner.export`, as fastai's `load_learner`, which raises
    UnpicklingError since torch 2.6.

    A full unpickle RUNS CODE in the file. Only `export.load_export` calls this, and only when told
    to trust the file. `recipe` is for files of hcd 0.1.0, which kept none.
    """
    state = torch.load(path, map_location="cpu", weights_only=False, pickle_module=WITH_MOVED)
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
