"""One set of predictions, judged: how sure its AUC is, group by group, and how well calibrated."""

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score, roc_curve

from ..errors import InputError
from .calibration import Calibration, Temperature, calibration, fit_temperature
from .given import as_numbers, number_groups
from .intervals import ClusteredAUC, clustered_auc, clustered_rates

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
NO_SPREAD = " (no two patches stand the wrong way round, so it tells nothing)"
RATES = ("sensitivity", "specificity", "accuracy")
LEAST = 10  # patches of a group whose own AUC is told
CURVE = 201  # points of a ROC curve, at most


@dataclass(frozen=True, eq=False)
class Judgement:
    """What predictions are worth.

    Attributes:
        what: the groups are, "slide" or "island of tissue". patches: how many were judged.
        value: their AUC.
        auc: ClusteredAUC over the groups; None where that cannot be told, and why_not says why.
        patch_auc: ClusteredAUC as if every patch were a group of its own, DeLong's; None where
            there is but one patch of a label.
        group_aucs: DataFrame, columns group, patches and auc, of the groups with ten patches or
            more and both labels, the lowest AUC first.
        roc: DataFrame, columns false_positive_rate, true_positive_rate and threshold, from which on
            a probability counts as tumour: the corners of the ROC curve from (0, 0), with a
            threshold of 2 that none reaches, to (1, 1); of more than 201 corners so many, evenly
            spread along the curve.
        rates: DataFrame, columns threshold, and for accuracy, sensitivity and specificity the
            share, low and high; empty where auc is None.
        calibration: Calibration. temperature: Temperature, fitted on one half of the groups and
            judged on the other; None where they cannot be halved.
        why_not, why_no_temperature: sentences' beginnings; "" where it could be told.
    """

    what: str
    patches: int
    value: float
    auc: ClusteredAUC | None
    patch_auc: ClusteredAUC | None
    group_aucs: pd.DataFrame
    roc: pd.DataFrame
    rates: pd.DataFrame
    calibration: Calibration
    temperature: Temperature | None
    why_not: str
    why_no_temperature: str

    @property
    def interval(self) -> dict | None:
        """The 95 % interval of the AUC, a dict of low, high and over, which says what it counts:
        groups, or patches where groups cannot tell; None where patches cannot either."""
        found, over = (self.auc, plural(self.what)) if self.auc else (self.patch_auc, "patches")
        if found is None:
            return None
        return {"low": found.interval[0], "high": found.interval[1], "over": over}

    def text(self) -> str:
        """Return lines for people."""
        lines = [f"AUC {self.value:.4f}"]
        if self.auc:
            lines.append(
                f"  95 % interval over {self.auc.groups:,} {plural(self.what)}:"
                f" {_interval(self.auc.interval)}"
                + (" (fewer than 50, often too narrow)" if self.auc.groups < 50 else "")
                + ("" if self.auc.standard_error else NO_SPREAD)
            )
            low, high = self.auc.without
            lines.append(f"  without one of them: {low:.4f} to {high:.4f}")
        else:
            lines.append(f"  no interval over {plural(self.what)}: {self.why_not}")
        if self.patch_auc:
            lines.append(
                f"  as if {self.patches:,} patches had nothing in common:"
                f" {_interval(self.patch_auc.interval)}"
            )
        for name, patches, auc in self.group_aucs[:1].itertuples(index=False):
            lines.append(f"  lowest within one {self.what}: {auc:.4f} ({name}, {patches} patches)")
        for row in self.rates.to_dict("records"):
            if row["threshold"] == 0.5:
                told = ", ".join(f"{name} {_rate_text(row, name)}" for name in RATES)
                lines.append(f"tumour above 0.5: {told}")
        return "\n".join([*lines, *self._calibration_lines()])

    def _calibration_lines(self):
        found = self.calibration
        lines = [
            f"calibration: Brier score {found.brier:.4f}, expected error"
            f" {found.expected_error:.4f}, slope {found.slope:.2f},"
            f" intercept {found.intercept:+.2f}"
        ]
        if self.temperature:
            before, after = self.temperature.before, self.temperature.after
            lines.append(
                f"  with temperature {self.temperature.value:.2f}, on the other half of the"
                f" {plural(self.what)}: expected error {before.expected_error:.4f} ->"
                f" {after.expected_error:.4f}"
            )
        else:
            lines.append(f"  no temperature: {self.why_no_temperature}")
        return lines

    def as_dict(self) -> dict:
        """Return everything as a dict that JSON can hold."""
        return {
            "groups_are": self.what,
            "auc": self.value,
            "patches": self.patches,
            "interval_over_patches": list(self.patch_auc.interval) if self.patch_auc else None,
            "groups": self.auc.groups if self.auc else None,
            "interval_over_groups": list(self.auc.interval) if self.auc else None,
            "without_one_group": list(self.auc.without) if self.auc else None,
            "why_no_interval": self.why_not,
            "why_no_temperature": self.why_no_temperature,
            "group_aucs": self.group_aucs.astype({"group": str}).to_dict("records"),
            "roc": self.roc.to_dict("list"),
            "rates": self.rates.to_dict("records"),
            "calibration": _plain(self.calibration),
            "temperature": self.temperature.value if self.temperature else None,
            "calibration_before": _plain(self.temperature.before) if self.temperature else None,
            "calibration_after": _plain(self.temperature.after) if self.temperature else None,
        }


def judge_predictions(
    probabilities: Any, labels: Any, groups: Any = None, what: str = "slide"
) -> Judgement:
    """Judge predicted probabilities of tumour; what groups cannot tell is left out and said.

    CHANGED C31: the walkthrough has an AUC alone.

    Args:
        probabilities: (N,) of tumour, in [0, 1]. labels: (N,) of 0 and 1.
        groups: (N,) slides or islands of tissue; None takes each patch for a group of its own.
        what: a group is.
    Returns:
        Judgement.
    Raises:
        InputError: a probability that is none, labels other than 0 and 1, only one of them, or not
        as many as probabilities, or not one group for each.

    Source: In 38.
    """
    probabilities, labels = as_numbers(probabilities, "probabilities"), np.asarray(labels)
    measured = calibration(probabilities, labels)
    number, names = number_groups(range(len(labels)) if groups is None else groups, len(labels))
    groups = pd.Series(names, dtype=object).to_numpy()[number]
    auc, patch_auc, temperature, rates = None, None, None, []
    why_not, why_no_temperature = "", ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # `text` says how few there are
        try:
            patch_auc = clustered_auc(probabilities, labels)
            auc = clustered_auc(probabilities, labels, groups)
            rates = [
                _rate_row(probabilities, labels, groups, threshold) for threshold in THRESHOLDS
            ]
        except InputError as error:  # a report of the rest is worth having
            why_not = str(error).split("; ")[0]
    try:
        temperature = fit_temperature(probabilities, labels, groups)
    except InputError as error:
        why_no_temperature = str(error).split("; ")[0]
    table = _group_aucs(probabilities, labels, groups)
    rates = pd.DataFrame(rates)
    return Judgement(
        what,
        len(labels),
        float(roc_auc_score(labels, probabilities)),
        auc,
        patch_auc,
        table,
        _roc(probabilities, labels),
        rates,
        measured,
        temperature,
        why_not,
        why_no_temperature,
    )


def plural(what: str) -> str:
    """Return "slides" and "islands of tissue"."""
    head, of, rest = what.partition(" of ")
    return f"{head}s{of}{rest}"


def _rate_row(probabilities, labels, groups, threshold):
    row: dict = {"threshold": threshold}
    for name, found in clustered_rates(probabilities, labels, groups, threshold).items():
        row |= {name: found.value, f"{name}_low": found.interval[0]}
        row |= {f"{name}_high": found.interval[1]}
    return row


def _group_aucs(probabilities, labels, groups):
    table = pd.DataFrame({"group": groups, "label": labels, "probability": probabilities})
    rows = [
        {
            "group": name,
            "patches": len(part),
            "auc": float(roc_auc_score(part["label"], part["probability"])),
        }
        for name, part in table.groupby("group", sort=False)
        if len(part) >= LEAST and part["label"].nunique() == 2
    ]
    found = pd.DataFrame(rows, columns=["group", "patches", "auc"])
    return found.sort_values("auc", kind="stable", ignore_index=True)


def _roc(probabilities, labels):
    falsely, truly, thresholds = roc_curve(labels, probabilities)
    thresholds[0] = 2  # infinity is no JSON
    columns = {"false_positive_rate": falsely, "true_positive_rate": truly, "threshold": thresholds}
    curve, along = pd.DataFrame(columns), falsely + truly  # rises from 0 to 2
    if len(curve) <= CURVE:
        return curve
    chosen = np.unique(np.searchsorted(along, np.linspace(0, 2, CURVE)))
    return curve.iloc[chosen].reset_index(drop=True)


def _rate_text(row, name):
    return f"{row[name]:.3f} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})"


def _interval(interval):
    return f"{interval[0]:.4f} to {interval[1]:.4f}"


def _plain(found):
    """Return a Calibration as JSON can hold it: a slope that is infinite is null."""
    values = {name: np.asarray(value) for name, value in asdict(found).items()}
    return {
        name: value.tolist() if np.isfinite(value).all() else None for name, value in values.items()
    }
