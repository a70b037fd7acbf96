"""Databunch -> learner."""
from fastai.metrics import accuracy
from fastai.torch_core import apply_init
from fastai.train import ShowGraph
from fastai.vision.learner import cnn_config, create_cnn_model
from torch import nn

from .compat import Learner, find_arch, require_weights, with_pretrained_flag
from .data import find_device


def get_learner(data, recipe, path="."):
    """Build a fresh learner: pretrained body, frozen but for its batch norms, and a new head.

    Args:
        data: see `make_databunch`.
        recipe: `arch`, `pretrained` and `head_dropout`.
        path: folder under which `Learner.save` keeps models/<name>.pth.
    Returns:
        fastai Learner with accuracy as metric and a live graph of the losses.
    Raises:
        ValueError: unknown architecture. FileNotFoundError: no pretrained weights to be had.

    KEPT K4: "frozen" layers still train their batch norms (fastai's train_bn). Without pretrained weights nothing is frozen.

    Source: In 16.
    """
    # these lines are fastai's cnn_learner, which would hand `pretrained` to torchvision in the way it no longer takes
    if recipe.pretrained:
        require_weights(find_arch(recipe.arch))
    model, split = build_model(recipe, data.c)
    learner = Learner(data, model, metrics=[accuracy], callback_fns=[ShowGraph], path=path)
    learner.split(split)
    if recipe.pretrained:
        learner.freeze()
    apply_init(model[1], nn.init.kaiming_normal_)
    return learner


def check_machine(recipe, device=None):
    """Find out before any work whether this machine can train the recipe.

    Args:
        recipe: `arch` and `pretrained`. device: see `find_device`.
    Raises:
        ValueError: unknown architecture, no such device. FileNotFoundError: no pretrained weights to be had.
    """
    find_device(device)
    arch = find_arch(recipe.arch)
    if recipe.pretrained:
        require_weights(arch)


def build_model(recipe, n_classes=2):
    """Build body and head without a learner.

    Args:
        recipe: `arch`, `pretrained` and `head_dropout`.
        n_classes: outputs of the head.
    Returns:
        model: nn.Sequential(body, head), (B, 3, H, W) -> (B, n_classes) logits.
        split: function of the model that gives the first layer of each layer group but the first, see fastai's `Learner.split`.
    """
    arch = find_arch(recipe.arch)
    meta = cnn_config(arch)
    model = create_cnn_model(with_pretrained_flag(arch), n_classes, meta["cut"], recipe.pretrained, ps=recipe.head_dropout)
    return model, meta["split"]
