"""hcd: the histopathologic cancer detection walkthrough in fastai v1, on today's torch.

A public name is loaded when it is first used, so that `hcd --help` need not wait for torch.
"""

import importlib
import warnings

__version__ = "0.1.0"

# setuptools >= 67 warns that pkg_resources goes, Python >= 3.12 about escapes in fastai's own
# source; a notebook that imports hcd first is spared both, whether or not it then imports fastai
# itself
warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
warnings.filterwarnings("ignore", "invalid escape sequence", SyntaxWarning)
# Python 3.10 and 3.11
warnings.filterwarnings("ignore", "invalid escape sequence", DeprecationWarning)

_MODULES = {
    "data": ("CroppedImageList", "make_databunch"),
    "dataset.check": ("CheckReport", "check_dataset"),
    "dataset.opened": ("Dataset", "open_dataset", "pixel_digests", "verify_patches"),
    "dataset.pack": ("PackedFolder", "PackedPatch", "copy_patch"),
    "dataset.packer": ("PackReport", "pack_dataset"),
    "dataset.pcam": ("ImportReport", "import_pcam"),
    "dataset.sample": ("make_sample",),
    "dataset.slides": ("read_slides",),
    "disk.whole": ("write_json",),
    "engine.saving": ("Learner",),
    "engine.device": ("set_rng_seed",),
    "errors": ("InputError",),
    "evidence.audit": ("AuditReport", "audit_dataset"),
    "evidence.calibration": (
        "Calibration",
        "Temperature",
        "calibration",
        "fit_temperature",
        "with_temperature",
    ),
    "evidence.colour": ("colour_baseline",),
    "evidence.faithfulness": ("Faithfulness", "heatmap_faithfulness"),
    "evidence.figures": ("plot_group_aucs", "plot_reliability"),
    "evidence.intervals": (
        "ClusteredAUC",
        "Estimate",
        "clustered_auc",
        "clustered_difference",
        "clustered_rates",
    ),
    "evidence.judge": ("Judgement", "judge_predictions"),
    "evidence.report": ("draw_losses", "write_report"),
    "evidence.overlap": ("Overlaps", "find_overlaps", "leaked_share"),
    "evaluate": ("score_predictions",),
    "export.answer": ("predict_image",),
    "export.bundle": ("load_bundle", "load_export", "save_bundle", "write_temperature"),
    "export.explain": ("Explanation", "explain_image"),
    "export.onnx": ("OnnxModel", "load_onnx"),
    "export.prediction": ("Prediction", "predict_images"),
    "export.to_onnx": ("export_onnx",),
    "export.wsinfer": ("export_wsinfer",),
    "gradcam": ("get_heatmap", "grad_cam", "hires_cam", "hooked_backward", "layer_cam"),
    "learner": ("check_machine", "get_learner"),
    "overview": ("choose_patches", "plot_heatmap_overview", "plot_overview"),
    "plots": (
        "plot_draws",
        "plot_outliers",
        "plot_patches",
        "plot_prediction",
        "plot_roc",
        "plot_sweep",
    ),
    "predict": ("predict_tta", "write_submission", "write_validation"),
    "reader": ("read_cropped_image", "read_image"),
    "recipe": ("Recipe",),
    "runs.checkpoint": ("Checkpoints",),
    "runs.folder": ("prepare_output",),
    "runs.log": ("LogCallback", "tensorboard_log"),
    "slide.answer": ("SlideAnswer",),
    "slide.outputs": ("write_answer",),
    "slide.predict": ("predict_slide",),
    "slide.sample": ("SlideSample", "make_slide_sample"),
    "split": ("evidence_groups", "grouped_split", "split_dataset", "stratified_split"),
    "stats": ("channel_statistics",),
    "sweep": ("sweep_weight_decay",),
    "walkthrough": ("run_walkthrough",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'hcd' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"hcd.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
