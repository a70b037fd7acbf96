"""What a learner that is handed in really holds: classes, normalisation, crops, activation,
precision.

The recipe says what was meant; a databunch of somebody's own may do otherwise. Each function here
reads one thing from the object itself, or refuses it in one sentence that names what differs.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from fastai.basic_train import _loss_func2activ
from fastai.core import listify, noop
from fastai.data_block import CategoryList
from fastai.layers import LabelSmoothingCrossEntropy
from fastai.vision.data import _normalize_batch
from torch import nn

from ..errors import InputError, InputTypeError
from ..recipe import Recipe

NEGATIVE_NAMES = {"0", "0.0", "false", "negative", "normal", "benign", "healthy", "no tumour"}
TUMOUR_NAMES = {"1", "1.0", "true", "positive", "tumour", "tumor", "malignant", "cancer"}


def require_learner(learner: Any) -> None:
    """Require a fastai learner with a model and a databunch.

    Raises:
        InputTypeError: it is something else, such as a loaded bundle.
    """
    if not isinstance(getattr(learner, "model", None), nn.Module) or not hasattr(
        getattr(learner, "data", None), "train_dl"
    ):
        raise InputTypeError(
            f"learner is a {type(learner).__name__}; give a fastai Learner, such as get_learner"
            " builds"
        )


def class_names(data: Any) -> list:
    """Return the classes of a databunch, in the order of the model's outputs.

    Raises:
        InputError: its labels are not one class out of several.
    """
    labels = getattr(data.train_ds, "y", None)
    if not isinstance(labels, CategoryList) or not len(labels.classes or []):
        raise InputError(
            f"the databunch's labels are a {type(labels).__name__}; hcd needs one class for each"
            " patch, label with label_cls=CategoryList and train again"
        )
    return list(labels.classes)


def require_width(width: int, classes: list) -> None:
    """Require as many outputs as there are classes."""
    if width != len(classes):
        raise InputError(
            f"the model has {width} outputs and the databunch {len(classes)} classes"
            f" ({_shown(classes)}); use the databunch that the model was built for"
        )


def require_negative_then_tumour(data: Any) -> None:
    """Require two classes of which the second is the tumour, as a submission and a card have it.

    CHANGED C25: the walkthrough takes column 1 for the tumour whatever the classes are; labels
    that are texts sort by the alphabet, and "malignant" comes before "normal".

    Raises:
        InputError: other classes, or in another order.
    """
    classes = class_names(data)
    names = [str(name).strip().lower() for name in classes]
    if len(names) != 2 or names[0] not in NEGATIVE_NAMES or names[1] not in TUMOUR_NAMES:
        raise InputError(
            f"data.classes is {_shown(classes)}, and column 1 must be the tumour; label the patches"
            " 0 for negative and 1 for tumour, so that data.classes is [0, 1], and train again"
        )


def head_width(model: nn.Module) -> int:
    """Return how many outputs a model's last linear or convolutional layer has."""
    layers = [
        layer for layer in unwrapped(model).modules() if isinstance(layer, (nn.Linear, nn.Conv2d))
    ]
    last = layers[-1]
    return last.out_features if isinstance(last, nn.Linear) else last.out_channels


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model itself where DataParallel, torch.compile or the like is wrapped around
    it."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    model = model.module if isinstance(model, wrappers) else model
    return getattr(model, "_orig_mod", model)


def applied_stats(loader: Any, where: str) -> tuple:
    """Return the (mean, std) by which a loader's batches are normalised; (zeros, ones) for none.

    Args:
        loader: fastai's DeviceDataLoader. where: what to call it.
    Returns:
        mean, std: a tuple of three floats each, exactly the float32 values that are applied.
    Raises:
        InputError: it does something else to its batches than normalise them once.
    """
    transforms = listify(loader.tfms)
    if not transforms:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    first = transforms[0]
    plain = getattr(first, "func", None) is _normalize_batch and first.keywords.get("do_x", True)
    if len(transforms) > 1 or not plain:
        names = [_name(getattr(transform, "func", transform)) for transform in transforms]
        raise InputError(
            f"{where} goes through the batch transforms {names}, and a model folder can hold one"
            " normalisation only; remove the others with data.remove_tfm and train again"
        )
    mean, std = (first.keywords[name].float().flatten().tolist() for name in ("mean", "std"))
    # one number is broadcast over the channels
    mean, std = (tuple(values * 3 if len(values) == 1 else values) for values in (mean, std))
    return mean, std


def require_crops(items: Any, where: str) -> Recipe:
    """Require a set whose items are the reader's crops and nothing else, and return their recipe.

    Args:
        items: fastai's LabelList, such as `data.valid_ds`. where: what to call it.
    Raises:
        InputError: items of another list, another size, or transforms of fastai's on top.
    """
    listed = getattr(items, "x", None)
    recipe = getattr(listed, "recipe", None)
    own = [getattr(type(listed), name, None) for name in ("open", "get")]
    if not isinstance(recipe, Recipe) or any(
        getattr(method, "__qualname__", "") != f"CroppedImageList.{name}"
        for method, name in zip(own, ("open", "get"))
    ):
        raise InputError(
            f"{where} is a {type(listed).__name__}, which reads no crops by a recipe; build the"
            " databunch of hcd.CroppedImageList, as make_databunch does"
        )
    size = (getattr(items, "tfmargs", None) or {}).get("size")
    if size not in (None, recipe.crop_size):
        raise InputError(
            f"{where} is resized to size={size} and its recipe has crop_size={recipe.crop_size};"
            " give both the same value and train again"
        )
    if items.tfms:
        raise InputError(
            f"{where} has fastai's transforms {_shown([_name(tfm) for tfm in listify(items.tfms)])}"
            " on top of the recipe's; leave them off validation and test patches, transform([[],"
            " []])"
        )
    return recipe


def applied_recipe(data: Any) -> Recipe:
    """Return the recipe by which a databunch's patches are read and normalised, its own mean and
    std in place of the recipe's where they differ.

    CHANGED C26: what a card says is what the databunch does; the walkthrough repeats the numbers
    by hand, and nothing compares them.

    Raises:
        InputError: sets that differ from each other, or what no recipe can say.
    """
    parts = {"the validation set": (data.valid_ds, data.valid_dl)}
    if data.test_dl is not None:
        parts["the test set"] = (data.test_ds, data.test_dl)
    trained = getattr(getattr(data.train_ds, "x", None), "recipe", None)
    stats = applied_stats(data.train_dl, "the training set")
    for where, (items, loader) in parts.items():
        recipe, other = require_crops(items, where), applied_stats(loader, where)
        if other != stats:
            raise InputError(
                f"the training set is normalised by {_shown(stats)} and {where} by"
                f" {_shown(other)}; call data.normalize once, after all sets are there"
            )
        for field in ("original_size", "crop_size"):
            values = [getattr(given, field, None) for given in (trained, recipe)]
            if values[0] != values[1]:
                raise InputError(
                    f"the training set has {field}={values[0]} and {where} {field}={values[1]};"
                    " give all sets one recipe"
                )
    return _with_stats(trained, *stats)


def _with_stats(recipe, mean, std):
    """Return a recipe with other stats; digits that float32 cannot tell apart stay as they are."""
    changes = {
        name: values
        for name, values in (("mean", mean), ("std", std))
        if torch.tensor(getattr(recipe, name)).tolist() != list(values)
    }
    return replace(recipe, **changes)


def bare_loss(learner: Any) -> Any:
    """Return a learner's loss without fastai's wrapper around it."""
    return getattr(learner.loss_func, "func", learner.loss_func)


def is_label_smoothing(learner: Any) -> bool:
    """Say whether the loss is label smoothing, of which fastai knows no activation."""
    return isinstance(bare_loss(learner), LabelSmoothingCrossEntropy)


def probabilities_of(learner: Any) -> Callable:
    """Return the function that makes probabilities of a learner's outputs, by its loss.

    fastai knows it for cross entropy (softmax), the negative log likelihood (exp) and binary cross
    entropy (sigmoid), and leaves the outputs of every other loss as they are; of label smoothing it
    is softmax too.

    Raises:
        InputError: a loss whose outputs nobody can tell the meaning of.
    """
    if is_label_smoothing(learner):
        return lambda outputs: torch.softmax(outputs, -1)
    found = _loss_func2activ(learner.loss_func)
    if found is None or found is noop:
        raise InputError(
            f"loss_func={_name(bare_loss(learner))} does not say how outputs become"
            " probabilities; where softmax is right, give learner.loss_func ="
            " torch.nn.CrossEntropyLoss() before you predict"
        )
    return found


def require_softmax(learner: Any) -> None:
    """Require a loss that belongs to softmax, which is what a loaded bundle computes.

    Raises:
        InputError: another one.
    """
    trial = torch.tensor([[0.3, -1.2]])
    if not torch.allclose(probabilities_of(learner)(trial), torch.softmax(trial, -1)):
        raise InputError(
            f"loss_func={_name(bare_loss(learner))} belongs to another activation than"
            " softmax, which a model folder stands for; train with cross entropy"
        )


def require_float32(model: nn.Module) -> None:
    """Require weights in float32, as a model folder holds them."""
    for name, values in model.state_dict().items():
        if values.is_floating_point() and values.dtype != torch.float32:
            raise InputError(
                f"the model's {name} is {values.dtype} and a model folder holds torch.float32;"
                " convert it with learner.to_fp32() or learner.model.float() first"
            )


def require_same_place(model: nn.Module, images: torch.Tensor) -> None:
    """Require a batch on the device and in the precision of the model's weights."""
    weights = next(model.parameters(), images)
    if weights.device != images.device or weights.dtype != images.dtype:
        raise InputError(
            f"the model is {weights.dtype} on {weights.device} and its databunch's batches are"
            f" {images.dtype} on {images.device}; change one, such as by"
            " learner.model.float().to(learner.data.device)"
        )


def require_probabilities(values: torch.Tensor, where: str, sums: bool = True) -> None:
    """Require numbers in [0, 1] whose rows sum to 1.

    Args:
        values: (N, classes). where: what to call them. sums: False leaves the sums alone, as of
            sigmoids.
    """
    values = values.float()
    inside = bool(((values >= 0) & (values <= 1)).all())
    if not inside or (sums and bool(((values.sum(1) - 1).abs() > 1e-2).any())):
        raise InputError(
            f"{where} are no probabilities: they lie in {float(values.min()):.3g} to"
            f" {float(values.max()):.3g} and a row sums to {float(values.sum(1)[0]):.3g}; use a"
            " loss that fastai knows the activation of, or pass activ= to from_learner"
        )


def _name(thing):
    return getattr(thing, "__name__", type(thing).__name__)


def _shown(values):
    """Return values as text of a bearable length, on one line."""
    if isinstance(values, tuple) and values and isinstance(values[0], tuple):
        return " / ".join(str(tuple(round(v, 6) for v in part)) for part in values)
    text = " ".join(str(values).split())
    return text if len(text) <= 120 else text[:117] + "..."
