"""What a model says of one image; knows no torch, for models that run without it."""

from dataclasses import dataclass

CLASSES = ["negative", "tumour"]


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image: its `path`, the `label` ("negative" or "tumour") and the
    tumour `probability`.

    One that could not be answered, see `predict_images`, has its sentence as `error`, the label ""
    and the probability NaN.
    """

    path: str
    label: str
    probability: float
    error: str = ""
