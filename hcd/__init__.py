"""hcd: the histopathologic cancer detection walkthrough in fastai v1, on today's torch."""
from .check import CheckReport, check_dataset
from .checkpoint import Checkpoints
from .compat import Learner
from .data import CroppedImageList, make_databunch, set_rng_seed, stratified_split
from .dataset import Dataset, open_dataset, verify_patches
from .evaluate import score_predictions
from .export import load_bundle, load_export, predict_image, save_bundle
from .files import prepare_output, write_json
from .gradcam import get_heatmap, grad_cam, hooked_backward
from .learner import check_machine, get_learner
from .overview import choose_patches, plot_heatmap_overview, plot_overview
from .pack import PackedFolder, PackedPatch, copy_patch
from .packer import PackReport, pack_dataset
from .plots import plot_draws, plot_outliers, plot_patches, plot_prediction, plot_roc, plot_sweep
from .predict import predict_tta, write_submission
from .reader import read_cropped_image, read_image
from .recipe import Recipe
from .sample import make_sample
from .stats import channel_statistics
from .sweep import sweep_weight_decay

__version__ = "0.1.0"
__all__ = [
    "CheckReport", "Checkpoints", "CroppedImageList", "Dataset", "Learner", "PackReport", "PackedFolder",
    "PackedPatch", "Recipe", "channel_statistics", "check_dataset", "check_machine", "choose_patches", "copy_patch",
    "get_heatmap", "get_learner", "grad_cam", "hooked_backward", "load_bundle", "load_export", "make_databunch",
    "make_sample", "open_dataset", "pack_dataset", "plot_draws", "plot_heatmap_overview", "plot_outliers",
    "plot_overview", "plot_patches", "plot_prediction", "plot_roc", "plot_sweep", "predict_image", "predict_tta",
    "prepare_output", "read_cropped_image", "read_image", "save_bundle", "score_predictions", "set_rng_seed",
    "stratified_split", "sweep_weight_decay", "verify_patches", "write_json", "write_submission",
]
