"""Architectures by name, and their ImageNet weights."""

import os
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
import torchvision

import hcd
from hcd.engine import arch, compat


def test_find_arch(refused):
    assert arch.find_arch("densenet169") is torchvision.models.densenet169
    assert arch.find_arch(torch.nn.Identity) is torch.nn.Identity
    for name, meant in (
        ("densenet-169", "densenet169"),
        ("resnet19", "resnet1"),
        ("ResNet18", "resnet18"),
        ("", "densenet169"),
        ("list_models", ""),
        ("resnet", "resnet"),
        ("fasterrcnn_resnet50_fpn", ""),
        ("__doc__", ""),
    ):
        with refused(ValueError, f"arch={name!r}", "did you mean", meant):
            arch.find_arch(name)


def test_an_unknown_arch_is_found_before_training(databunch, refused):
    recipe = hcd.Recipe.sample(arch="densenet170")
    for call in (lambda: hcd.check_machine(recipe), lambda: hcd.get_learner(databunch, recipe)):
        with refused(ValueError, "arch='densenet170'", "densenet1"):
            call()


def test_torchvision_warns_of_a_pretrained_flag_and_ours_does_not(shared, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(shared / "weights"))
    squeezenet = torchvision.models.squeezenet1_1
    with pytest.warns(UserWarning, match="pretrained|weight enum"):
        squeezenet(pretrained=True)
    arch.require_weights(squeezenet)
    model = arch.with_pretrained_flag(squeezenet)(True)
    stored = compat.load_tensors(next((shared / "weights").glob("**/squeezenet1_1-*.pth")))
    weights = model.state_dict()
    assert weights.keys() == stored.keys()
    assert all(torch.equal(weights[name], stored[name]) for name in stored)


def test_without_pretrained_weights_none_are_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert isinstance(
        arch.with_pretrained_flag(torchvision.models.squeezenet1_1)(False),
        torchvision.models.SqueezeNet,
    )
    assert os.listdir(tmp_path) == []


def test_an_arch_of_ones_own_is_called_as_fastai_calls_it(monkeypatch):
    def own(pretrained):
        return pretrained

    def squeezenet1_1(pretrained):
        return pretrained

    for builder in (own, squeezenet1_1, SimpleNamespace()):
        assert arch.with_pretrained_flag(builder) is builder
        assert arch.require_weights(builder) is None


def test_an_arch_that_torchvision_has_no_such_weights_for(refused):
    huge = torchvision.models.vit_h_14  # has others than IMAGENET1K_V1
    with refused(ValueError, "vit_h_14", "IMAGENET1K_V1", "pretrained=False"):
        arch.require_weights(huge)
    assert arch.with_pretrained_flag(huge) is not huge


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Empty weights cache and no network; the list says what was asked for."""
    asked = []

    def fail(url, *args, **kwargs):
        asked.append(url)
        raise URLError(OSError(-3, "Temporary failure in name resolution"))

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    return asked


def test_no_weights_and_no_network(databunch, offline, tmp_path, refused):
    file, recipe = (
        tmp_path / "cache" / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth",
        hcd.Recipe(arch="squeezenet1_1"),
    )
    for call in (
        lambda: arch.require_weights(torchvision.models.squeezenet1_1),
        lambda: hcd.check_machine(recipe),
        lambda: hcd.get_learner(databunch, recipe),
    ):
        with refused(
            FileNotFoundError, "squeezenet1_1", file, "name resolution", "pretrained=False"
        ):
            call()
    assert len(offline) == 3 and all(url.endswith("/squeezenet1_1-b8a52dc0.pth") for url in offline)
    hcd.check_machine(hcd.Recipe(arch="squeezenet1_1", pretrained=False))
    assert len(offline) == 3


def test_a_weights_cache_that_cannot_be_written(offline, tmp_path, refused):
    (tmp_path / "cache").touch()
    with refused(FileNotFoundError, tmp_path / "cache", "Not a directory"):
        arch.require_weights(torchvision.models.squeezenet1_1)
    assert not offline


def test_weights_are_downloaded_once_and_checked_by_their_hash(monkeypatch, tmp_path, refused):
    calls = []

    def download(url, file, hash_prefix):
        calls.append((url.rsplit("/", 1)[1], hash_prefix))
        torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), file)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        arch.require_weights(torchvision.models.squeezenet1_1)
    assert calls == [("squeezenet1_1-b8a52dc0.pth", "b8a52dc0")]
    damaged = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    damaged.write_bytes(damaged.read_bytes()[:100_000])
    with refused(ValueError, damaged, "damaged"):
        arch.require_weights(torchvision.models.squeezenet1_1)
