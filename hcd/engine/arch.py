"""torchvision's models, by name, as fastai calls them, and their ImageNet weights."""

from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision

from ..errors import InputError
from .compat import load_tensors


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
            f"arch={arch!r} is no model of torchvision {version('torchvision')}; did you mean"
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
