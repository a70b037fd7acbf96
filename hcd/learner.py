"""Databunch -> learner."""

from dataclasses import replace

import torch
from fastai.metrics import accuracy
from fastai.torch_core import apply_init
from fastai.train import ShowGraph
from fastai.vision.learner import cnn_config, create_cnn_model, model_meta
from torch import nn

from .disk.whole import StrPath
from .engine.arch import find_arch, require_weights, with_pretrained_flag
from .engine.average import MeanWeights
from .engine.compat import DataBunch
from .engine.device import find_device
from .engine.fast import FastModel, LossScaler, low_precision
from .engine.graphs import DecayAtOnce, RecordedSteps
from .engine.saving import Learner
from .engine.sharded import across_ranks
from .errors import InputError
from .recipe import Recipe


def get_learner(data: DataBunch, recipe: Recipe, path: StrPath = ".") -> Learner:
    """Build a fresh learner: pretrained body, frozen but for its batch norms, and a new head.

    Args:
        data: see `make_databunch`.
        recipe: `arch`, `pretrained`, `head_dropout`, `mean_weights` and `fast`.
        path: folder under which `Learner.save` keeps models/<name>.pth.
    Returns:
        fastai Learner with accuracy as metric and a live graph of the losses.
    Raises:
        InputError: unknown architecture, one that `save_bundle` could not save, or one that the
            databunch's crops are too small for. FileNotFoundError: no pretrained weights to be had.

    KEPT K4: "frozen" layers still train their batch norms (fastai's train_bn), and weight decay
    still shrinks their biases (DenseNet has none). Without pretrained weights nothing is frozen.
    CHANGED C15: built from the parts of fastai's `cnn_learner` (once `create_cnn`), since
        torchvision takes weights= now.
    READ R3: `callback_fns>ShowGraph` is read as `callback_fns=ShowGraph`.

    Source: In 16.
    """
    require_savable(recipe)
    if isinstance(recipe.arch, str):
        _require_room(build_shapes(recipe), _patch_side(data, recipe), recipe.arch)
    # these lines are fastai's cnn_learner, which would hand `pretrained` to torchvision in the way
    # it no longer takes
    if recipe.pretrained:
        require_weights(find_arch(recipe.arch))
    model, split = build_model(recipe, data.c)
    if recipe.fast:
        model = FastModel(model)
    learner = Learner(data, model, metrics=[accuracy], callback_fns=[ShowGraph], path=path)
    learner.split(split)
    if recipe.pretrained:
        learner.freeze()
    apply_init(model[1], nn.init.kaiming_normal_)
    if recipe.fast and data.device.type == "cuda":
        learner.callbacks.append(RecordedSteps(learner))
    if recipe.fast and low_precision(data.device) == torch.float16:
        learner.callbacks.append(LossScaler(learner))
    elif recipe.fast:
        learner.callbacks.append(DecayAtOnce(learner))
    if recipe.mean_weights:
        learner.callbacks.append(MeanWeights(learner))
    learner.callbacks += across_ranks(learner)
    return learner


def check_machine(recipe: Recipe, device: str | torch.device | None = None) -> None:
    """Find out before any work whether this machine can train the recipe and `save_bundle` its
    model.

    Args:
        recipe: `arch`, `pretrained` and `crop_size`. device: see `find_device`.
    Raises:
        InputError: unknown architecture, one that fastai cannot cut or whose pooling leaves nothing
            of the crop, no such device.
            FileNotFoundError: no pretrained weights.
    """
    find_device(device)
    require_savable(recipe)
    if isinstance(recipe.arch, str):
        _require_room(build_shapes(recipe), recipe.crop_size, recipe.arch)
    if recipe.pretrained:
        require_weights(find_arch(recipe.arch))


def require_savable(recipe) -> None:
    """Require an architecture whose model `save_bundle` can save, before it is trained.

    Your own function passes where fastai's `model_meta` has an entry for it: whoever tells fastai
    where to cut and split it has been told here that no card can name it.

    Raises:
        InputError: your own function without such an entry, or as `build_shapes`.
    """
    if isinstance(recipe.arch, str):
        build_shapes(recipe)
        return
    if recipe.arch not in model_meta:
        name = getattr(recipe.arch, "__qualname__", repr(recipe.arch))
        raise InputError(
            f"arch={name} is no model of torchvision, so no card can name it and save_bundle could"
            " not save it; give a torchvision model's name, or to train without save_bundle add"
            " your own to fastai.vision.learner.model_meta first"
        )


def _patch_side(data, recipe):
    """Return the side of the images that a databunch hands out, as far as it can be told."""
    items = data.train_ds
    size = (getattr(items, "tfmargs", None) or {}).get("size")
    read = getattr(getattr(items, "x", None), "recipe", recipe)
    return size if isinstance(size, int) else read.crop_size


def _require_room(model, side, arch):
    """Require that a network's pooling leaves something of an image; computed on shapes alone."""
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model.eval()(torch.empty(2, 3, side, side, device=device))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120].replace(". ", ", ").rstrip(".")
        raise InputError(
            f"arch={arch!r} leaves nothing of crops of crop_size={side} px ({reason}); give a"
            " larger crop_size or another arch"
        ) from error


def build_model(recipe, n_classes=2):
    """Build body and head without a learner.

    Args:
        recipe: `arch`, `pretrained` and `head_dropout`.
        n_classes: outputs of the head.
    Returns:
        model: nn.Sequential(body, head), (B, 3, H, W) -> (B, n_classes) logits.
        split: function of the model that gives the first layer of each layer group but the first,
            see fastai's `Learner.split`.
    Raises:
        InputError: unknown architecture, or one that does not end in a pooling layer and a
            classifier, where fastai cuts.

    CHANGED C18: fastai cuts others in the wrong place in silence, or fails far below.
    """
    arch = find_arch(recipe.arch)
    meta, whole = cnn_config(arch), []

    def build(pretrained):
        whole.append(with_pretrained_flag(arch)(pretrained))
        return whole[0]

    try:
        model = create_cnn_model(
            build, n_classes, meta["cut"], recipe.pretrained, ps=recipe.head_dropout
        )
        # ShuffleNet's only pooling layer is in its stem
        if 2 * _count_convolutions(model[0]) < _count_convolutions(whole[0]):
            raise RuntimeError("most of its layers come after the last pooling layer")
    except (StopIteration, RuntimeError) as error:
        name, reason = (
            getattr(arch, "__name__", arch),
            " ".join([type(error).__name__, *str(error).split()])[:120],
        )
        raise InputError(
            f"arch={name!r} cannot be made into body and head by fastai ({reason}); choose another,"
            " such as densenet169 or resnet50"
        ) from error
    # asked for by set_rng_seed, and cnn_config has just switched the benchmark on
    if torch.backends.cudnn.deterministic:
        torch.backends.cudnn.benchmark = False
    return model, meta["split"]


def build_shapes(recipe):
    """Build body and head without weights and without memory for them, on torch's meta device.

    Args:
        recipe: see `build_model`.
    Returns:
        model: nn.Sequential(body, head) of tensors that have a shape and a type but no values.
    Raises:
        InputError: as `build_model`, or an architecture whose shapes torch cannot work out without
            memory (RegNet).
    """
    with torch.device("meta"):
        return build_model(replace(recipe, pretrained=False))[0]


def _count_convolutions(model):
    return sum(isinstance(layer, nn.Conv2d) for layer in model.modules())
