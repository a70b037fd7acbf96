"""Every number of the walkthrough in one frozen record."""

import inspect
import re
import sys
from dataclasses import dataclass, fields, replace
from typing import Any

from .corners import corner_depth, require_shallow_corners
from .errors import InputError, InputTypeError

SPLITS = ("random", "islands", "slides")


def _require(ok, text):
    if not ok:
        raise InputError(text)


@dataclass(frozen=True)
class Recipe:
    """Hold the walkthrough's values; change one with `dataclasses.replace` or a keyword.

    Attributes:
        original_size: side of a patch, in px.
        crop_size: side of the crop that the network sees, in px.
        max_rotation: largest turn either way, in degrees; 0 is off.
        max_shift: largest shift in each direction, in px; 0 is off.
        max_brightness: largest change of brightness, in percent; 0 is off.
        max_contrast: largest change of contrast, in percent; 0 is off.
        quarter_turns: turn by 90 degrees either way too.
        flips: mirror the crop, left to right and upside down.
        stain_jitter: largest change of each stain's concentration, as a share and as a shift, see
            `stain.jitter_stains`; 0 is off, as in the walkthrough.
        valid_fraction: share of the labelled patches that is set aside for validation.
        split: what is set aside: "random" patches, whole "islands" of patches that show the same
            tissue, or whole "slides".
        batch_size: patches a training step.
        arch: name of a torchvision model, or a callable `arch(pretrained=...)`; torchvision's own
            functions, as the walkthrough gives one, are kept by their name.
        pretrained: begin with ImageNet's weights, the body frozen in stage 1.
        head_dropout: dropout before the last layer; half of it before the one above.
        mean: what is taken off R, G and B, on the scale from 0 to 1.
        std: what R, G and B are divided by after that.
        sweep_weight_decays: weight decays to run a learning-rate range test for.
        sweep_iterations: batches of each range test.
        weight_decay: of stage 1.
        head_epochs: epochs of stage 1, which trains the head.
        head_max_lr: highest learning rate of stage 1.
        finetune_epochs: epochs of stage 2, which trains everything.
        finetune_max_lr: highest learning rates of stage 2, of the first and of the last layers.
        mean_weights: end stage 2 on the mean of the weights over its last epoch, see
            `engine.average.MeanWeights`.
        tta_passes: augmented predictions to average for each test patch.
        rng_seed: makes a run repeatable; without it every generator stays as it is, as in the
            walkthrough.
        fast: train and predict in 16 bits.
        resident: keep the patches on the device and cut the crops there; None does it where the
            recipe is fast and a GPU has room for them.

    Raises:
        InputError: a value outside its range; InputTypeError: a value of the wrong type.

    Source: In 4, In 10, In 11, In 14 (mean, std), In 16 to 19, In 25, In 39.
    """

    original_size: int = 96
    crop_size: int = 90
    max_rotation: int = 3
    max_shift: int = 2
    max_brightness: int = 7
    max_contrast: int = 5
    quarter_turns: bool = True
    flips: bool = True
    stain_jitter: float = 0.0
    valid_fraction: float = 0.1
    split: str = "random"
    batch_size: int = 128
    arch: Any = "densenet169"
    pretrained: bool = True
    head_dropout: float = 0.5
    mean: tuple = (0.702447, 0.546243, 0.696453)
    std: tuple = (0.238893, 0.282094, 0.216251)
    sweep_weight_decays: tuple = (1e-6, 1e-4, 1e-2)
    sweep_iterations: int = 600
    weight_decay: float = 1e-4
    head_epochs: int = 8
    head_max_lr: float = 2e-2
    finetune_epochs: int = 12
    finetune_max_lr: tuple = (4e-5, 4e-4)
    mean_weights: bool = False
    tta_passes: int = 12
    rng_seed: int | None = None
    fast: bool = False
    resident: bool | None = None

    def __post_init__(self):
        object.__setattr__(self, "arch", _named(self.arch))
        for field in fields(self):
            # as JSON and notebook parameters write a tuple
            if isinstance(getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
            self._check_type(field.name, getattr(self, field.name), field.default)
        self._check_geometry()
        self._check_training()
        _require(
            self.rng_seed is None or 0 <= self.rng_seed < 2**32,
            f"rng_seed={self.rng_seed} starts no random generator; "
            f"give None or a whole number from 0 to {2**32 - 1}",
        )

    @classmethod
    def sample(cls, **changes: Any) -> "Recipe":
        """Return the recipe of the embedded synthetic sample: small, from scratch, minutes on a
        CPU."""
        small = dict(
            arch="resnet18",
            pretrained=False,
            batch_size=32,
            valid_fraction=0.25,
            sweep_iterations=30,
            head_epochs=3,
            head_max_lr=3e-3,
            finetune_epochs=3,
            finetune_max_lr=(1e-4, 1e-3),
            tta_passes=4,
            rng_seed=0,
        )
        return cls(**{**small, **changes})

    @classmethod
    def robust(cls, **changes: Any) -> "Recipe":
        """Return the walkthrough's recipe with what helps on slides that the model has never seen:
        the whole patch in the place of a shifted and slightly turned crop of it, and the mean of
        the weights over the last epoch.

        What was tried and what it came to stands in tests/benchmarks/README.md.
        """
        return cls(**robust_changes(changes))

    @classmethod
    def from_stored(cls, values: dict) -> "Recipe":
        """Return the recipe that a card, a checkpoint or a run's record holds.

        Args:
            values: dict of fields. One that is not there, for the file was written before the field
                existed, takes its default; see tests/golden for files that must load for ever.
        Raises:
            InputError: a field that this hcd does not know, or a value out of range.
        """
        for name in sorted(set(values) - {field.name for field in fields(cls)}):
            raise InputError(
                f"recipe field {name[:60]!r} is unknown; restore the file or install the hcd that "
                "wrote it"
            )
        return cls(**values)

    @classmethod
    def meanings(cls) -> dict[str, str]:
        """Return what each field means, from the lines above, for the command line's help."""
        attributes = (cls.__doc__ or "").partition("Attributes:")[2].partition("Raises:")[0]
        found = re.findall(r"^ {8}(\w+): ((?:.|\n {12})+)", attributes, re.MULTILINE)
        return {name: " ".join(text.split()) for name, text in found}

    def plain(self) -> "Recipe":
        """Return the same recipe with every augmentation off: the reader then returns the centre
        crop alone."""
        return replace(
            self,
            max_rotation=0,
            max_shift=0,
            max_brightness=0,
            max_contrast=0,
            quarter_turns=False,
            flips=False,
            stain_jitter=0.0,
        )

    @property
    def margin(self) -> int:
        """Pixels between the patch's edge and the centre crop, before rotation and shift."""
        return (self.original_size - self.crop_size) // 2

    @property
    def corner_depth(self) -> float:
        """How many px of a black corner a crop can show at most, see `corners.corner_depth`; 0.0
        for none."""
        return corner_depth(
            self.original_size,
            self.crop_size,
            self.max_rotation,
            self.max_shift,
            self.quarter_turns,
        )

    @staticmethod
    def _check_type(name, value, default):
        """Turn down a value of another type than the walkthrough's."""
        if name == "resident":
            good, wanted = value is None or isinstance(value, bool), "None, True or False"
        elif name in ("arch", "rng_seed"):
            good = (
                (isinstance(value, str) or callable(value))
                if name == "arch"
                else (value is None or (isinstance(value, int) and not isinstance(value, bool)))
            )
            wanted = (
                "a torchvision model's name or a callable"
                if name == "arch"
                else "None or an integer"
            )
        elif isinstance(default, tuple):
            good = isinstance(value, tuple) and all(_is_number(v) for v in value)
            wanted = "a tuple of numbers"
        elif isinstance(default, float):
            good, wanted = _is_number(value), "a finite number"
        else:
            good, wanted = (
                type(value) is type(default),
                {bool: "True or False", int: "an integer", str: "a text"}[type(default)],
            )
        if not good:
            raise InputTypeError(
                f"{name}={value!r} is not {wanted}; give it as {default!r} is given"
            )

    def _check_geometry(self):
        size, crop = self.original_size, self.crop_size
        _require(
            0 < size <= 65535,
            f"original_size={size if abs(size) < 10**9 else 'a huge number'} px is no patch; give"
            " 1 to 65535, 96 for this data set",
        )
        _require(
            0 < crop <= size,
            f"crop_size={crop} px does not fit a patch of {size} px; give 1 to {size}",
        )
        _require(
            0 <= self.max_shift <= self.margin,
            f"max_shift={self.max_shift} px leaves the patch: "
            f"crop_size={crop} allows 0 to {self.margin}; lower one",
        )
        for name, most in (("max_rotation", 180), ("max_brightness", 100), ("max_contrast", 100)):
            value = getattr(self, name)
            _require(0 <= value <= most, f"{name}={value} is out of range; give 0 (off) to {most}")
        _require(
            0 <= self.stain_jitter < 1,
            f"stain_jitter={self.stain_jitter} is out of range; give 0 (off) to below 1",
        )
        require_shallow_corners(size, crop, self.max_rotation, self.max_shift, self.quarter_turns)

    def _check_training(self):
        for name in (
            "batch_size",
            "sweep_iterations",
            "head_epochs",
            "finetune_epochs",
            "tta_passes",
        ):
            # batch norm and a curve need two
            least = 2 if name in ("batch_size", "sweep_iterations") else 1
            _require(
                getattr(self, name) >= least,
                f"{name}={getattr(self, name)} is too small; give {least} or more",
            )
        _require(
            0 < self.valid_fraction < 1,
            f"valid_fraction={self.valid_fraction} is no share; give one between 0 and 1",
        )
        _require(
            self.split in SPLITS,
            f"split={self.split[:60]!r} is no way to split; give one of {', '.join(SPLITS)}",
        )
        _require(
            not (self.resident and self.stain_jitter),
            f"resident=True cuts no crops with stain_jitter={self.stain_jitter}, which is no whole"
            " number's arithmetic; leave resident at None or stain_jitter at 0",
        )
        _require(
            0 <= self.head_dropout < 1,
            f"head_dropout={self.head_dropout} is no dropout probability; give 0 to below 1",
        )
        self._check_stats()
        self._check_rates()

    def _check_stats(self):
        for name in ("mean", "std"):
            _require(
                len(getattr(self, name)) == 3,
                f"{name}={getattr(self, name)} needs one number each for R, G and B",
            )
        _require(
            min(self.std) > 0,
            f"std={self.std} must be above 0 in every channel; compute it with channel_statistics",
        )

    def _check_rates(self):
        _require(
            len(self.sweep_weight_decays) > 0,
            "sweep_weight_decays=() leaves nothing to sweep; name at least one",
        )
        _require(
            min(*self.sweep_weight_decays, self.weight_decay, 0) >= 0,
            f"weight_decay={self.weight_decay} and sweep_weight_decays={self.sweep_weight_decays}"
            " must not be below 0, where weights would grow; give 0 or more",
        )
        _require(
            self.head_max_lr > 0,
            f"head_max_lr={self.head_max_lr} does not learn; give a learning rate above 0",
        )
        _require(
            len(self.finetune_max_lr) == 2
            and 0 < self.finetune_max_lr[0] <= self.finetune_max_lr[1],
            f"finetune_max_lr={self.finetune_max_lr} must be (lowest, highest) with 0 < lowest <="
            " highest",
        )


def robust_changes(changes: dict) -> dict:
    """Return the fields of `Recipe.robust`, with changes of one's own on top."""
    size = changes.get("original_size", Recipe.original_size)
    whole = {"crop_size": size, "max_shift": 0, "max_rotation": 0, "mean_weights": True}
    return {**whole, **changes}


def _named(arch):
    """Return the name of a torchvision function, so that it stands on cards and compares equal to
    its name; anything else as it is."""
    models = sys.modules.get("torchvision.models")  # whoever has its function has loaded it
    name = getattr(arch, "__name__", None)
    known = inspect.isfunction(arch) and getattr(models, str(name), None) is arch
    return name if known else arch


def _is_number(value):
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )
