"""Does evidence help to tell wrong labels? `python -m benchmarks.evidence_signal [NAME ...] [--out runs/real_data]`.

Reads finished audits of `benchmarks.real_data` (probe, train, val300), where the wrong labels are known. Among the
images that are not predicted as labelled, printed for each set of signals: average precision and AUROC of a logistic
regression on them, out of fold (5 folds, repeated 20 times), and their deviation. Signals: the label's score by the
probabilities; whether anything speaks for the given label; how far the evidences of label and prediction coincide, and
how far apart they lie; how far the odds swing between the halves in which they lie; how much of the prediction's
evidence lies at the image's border, off the object.
Then what the audit's own rule makes of the evidence: flags by probabilities alone, and those left when two objects
excuse the label.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.real_data import _DATA, AUDITS
from pipeline.audit.flags import read_audited_classes, read_label_cut, write_audit
from pipeline.runfolder import RunFolder

_REPEATS = 20
_BORDER = 1 / 8


def read(run: RunFolder) -> pd.DataFrame:
    """Return one row per image that was read and has a label: signals and flags."""
    audit = pd.read_parquet(run.audit).set_index("image_id")
    columns = ["image_id", "width", "height", "pred", "label_fix_mass"]
    columns += [f"evidence_{one}" for one in ("overlap", "distance", "swing")]
    columns += [f"pred_fix_{one}" for one in ("x", "y", "mass")]
    evidence = pd.concat([pd.read_parquet(part, columns=columns) for part in run.evidence_parts()]).set_index(
        "image_id"
    )
    rows = audit.join(evidence, how="inner")[audit["label_score"].notna()]
    trust = rows["label_score"].clip(1e-4, 1 - 1e-4)
    rows["score"] = np.log(trust / (1 - trust))
    rows["nothing for the label"] = rows["evidence_overlap"].isna().astype(float)
    rows["overlap"] = rows["evidence_overlap"].fillna(0)
    rows["distance"] = rows["evidence_distance"].fillna(0)
    rows["swing"] = rows["evidence_swing"].fillna(0)
    rows["at the border"] = [border(row) for row in rows.itertuples()]
    return rows


def border(row: object) -> float:
    """Return the share of the prediction's evidence within an eighth of the image's border."""
    x, y, mass = (np.asarray(getattr(row, f"pred_fix_{one}"), float) for one in ("x", "y", "mass"))
    width, height = (float(getattr(row, side)) for side in ("width", "height"))
    near = np.minimum.reduce([(x + 0.5) / width, 1 - (x + 0.5) / width, (y + 0.5) / height, 1 - (y + 0.5) / height])
    return float(mass[near < _BORDER].sum())


SIGNALS = (
    ("probabilities alone", ("score",)),
    ("+ evidence for the given label", ("score", "nothing for the label")),
    ("+ overlap", ("score", "nothing for the label", "overlap")),
    ("+ distance", ("score", "nothing for the label", "overlap", "distance")),
    ("+ swing of the odds", ("score", "nothing for the label", "overlap", "distance", "swing")),
    ("+ evidence at the border", ("score", "nothing for the label", "overlap", "distance", "swing", "at the border")),
)


def told(signals: NDArray[np.float64], wrong: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return average precision and AUROC, (repeats, 2)."""
    found = []
    for seed in range(_REPEATS):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0))
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        probability = cross_val_predict(model, signals, wrong, cv=folds, method="predict_proba")[:, 1]
        found.append((average_precision_score(wrong, probability), roc_auc_score(wrong, probability)))
    return np.array(found)


def main() -> None:
    """Print a table for each audit that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["probe", "train", "val300"], metavar="NAME")
    parser.add_argument("--data", type=Path, default=_DATA)
    parser.add_argument("--out", type=Path, default=Path("runs") / "real_data")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in options.names:
        run = RunFolder(options.out / f"{name}-run")
        if not run.is_complete:
            print(f"left out, not there: {run.path}")
            continue
        count = json.loads(run.run_json.read_text())["dataset"]["images"]
        with tempfile.TemporaryDirectory() as folder:
            errors = AUDITS[name](options.data, Path(folder), count).errors
            again = RunFolder(Path(folder) / "run")  # the verdicts of a review are the truth: not with them
            shutil.copytree(run.evidence, again.evidence)
            write_audit(again, read_audited_classes(run))
            rows, limit = read(again), read_label_cut(again).limit
        wrong = rows.index.isin(errors)
        differ = (rows["pred"] != rows["label"]).to_numpy()
        print(
            f"\n{name}: {len(rows):,} images, {differ.sum():,} not predicted as labelled, of them "
            f"{wrong[differ].sum()} wrong"
        )
        print("| signals | average precision | AUROC |\n|---|---|---|")
        for what, signals in SIGNALS:
            found = told(rows.loc[differ, list(signals)].to_numpy(float), wrong[differ])
            mean, error = found.mean(0), found.std(0)
            print(f"| {what} | {mean[0]:.3f} ± {error[0]:.3f} | {mean[1]:.3f} ± {error[1]:.3f} |")
        called = differ & (rows["label_score"] <= np.float32(limit)).to_numpy()
        kept = rows["is_mislabeled"].to_numpy()
        for what, flags in (
            ("flags by probabilities", called),
            ("left by the evidence", kept),
            ("excused", called & ~kept),
        ):
            right = (flags & wrong).sum()
            print(f"{what}: {flags.sum()}, of them wrong {right} ({right / max(1, flags.sum()):.3f})")


if __name__ == "__main__":
    main()
