"""Every Parquet column of a run folder, declared once: name, type and meaning.

The documentation (docs/reference/schema.md) is generated from these fields. `VERSION` is stored in each file's
metadata under ``fixaudit.schema`` and grows when a column changes its meaning or goes.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipeline.geometry import MAP_SIDE

VERSION = 5

_POINTS = pa.list_(pa.int32())
_MASSES = pa.list_(pa.float32())
_BOX = pa.list_(pa.float32(), 4)
_MAP = pa.binary(MAP_SIDE * MAP_SIDE)

STATUSES = ("ok", "error")
FLAGS = ("is_mislabeled", "is_ambiguous", "is_adversarial_drift")
ISSUES = ("mislabeled", "ambiguous", "adversarial_drift", "duplicate_conflict", "unreadable")


def _field(name: str, kind: pa.DataType, meaning: str) -> pa.Field[Any]:
    return pa.field(name, kind, metadata={"meaning": meaning})


def _schema(table: str, *fields: pa.Field[Any]) -> pa.Schema:
    return pa.schema(fields, metadata={"fixaudit.table": table, "fixaudit.schema": str(VERSION)})


_IMAGE_ID = _field("image_id", pa.string(), "stable id: path relative to the dataset's root, `/` separators")
_URI = _field("uri", pa.string(), "where the image was read from")
_LABEL = _field("label", pa.int32(), "given label as class index")
_LABEL_NAME = _field("label_name", pa.string(), "given label in words")

MANIFEST = _schema(
    "manifest",
    _IMAGE_ID,
    _URI,
    _LABEL,
    _LABEL_NAME,
    _field("split", pa.string(), "train, val, test, ... where the dataset says so; else empty"),
    _field("shard", pa.int32(), "number of the evidence part that holds this image"),
)


def _evidence_of(prefix: str, whose: str) -> tuple[pa.Field[Any], ...]:
    return (
        _field(f"{prefix}_fix_x", _POINTS, f"fixations for {whose}: columns, original pixels"),
        _field(f"{prefix}_fix_y", _POINTS, f"fixations for {whose}: rows, original pixels"),
        _field(f"{prefix}_fix_mass", _MASSES, f"fixations for {whose}: share of the evidence; sums to 1"),
        _field(f"{prefix}_box", _BOX, f"box around the evidence for {whose}: x0, y0, x1, y1, original pixels"),
        _field(
            f"{prefix}_mask",
            pa.string(),
            f"saliency mask for {whose}, drawn along the picture's edges: COCO RLE counts at original size",
        ),
        _field(
            f"{prefix}_map",
            _MAP,
            f"saliency map for {whose}, of which the mask is the highest part: {MAP_SIDE} x {MAP_SIDE} levels of 0 to "
            "255, row by row, spread over the whole image",
        ),
    )


EVIDENCE = _schema(
    "evidence",
    _IMAGE_ID,
    _URI,
    _field("sha256", pa.string(), "digest of the file's bytes; null when it could not be read"),
    _field(
        "thumbnail", pa.binary(64), "8 x 8 grey levels, row by row, of the whole image; null when it could not be read"
    ),
    _field("width", pa.int32(), "original width in pixels, after EXIF rotation"),
    _field("height", pa.int32(), "original height in pixels, after EXIF rotation"),
    _field("status", pa.string(), "`ok`, or `error`: the image could not be audited"),
    _field("error", pa.string(), "why, in words; null when status is `ok`"),
    _LABEL,
    _LABEL_NAME,
    _field("pred", pa.int32(), "predicted label as class index"),
    _field("pred_name", pa.string(), "predicted label in words"),
    _field("fold", pa.int16(), "held-out fold that predicted this image; -1: the model never saw this dataset"),
    _field("probs", pa.list_(pa.float16()), "out-of-sample probability per class, in [0, 1]"),
    *_evidence_of("pred", "the predicted class"),
    *_evidence_of("label", "the given label, when it is not the prediction"),
    _field(
        "evidence_overlap", pa.float32(), "in [0, 1]: how far the two classes' evidence coincides; null without two"
    ),
    _field(
        "evidence_distance",
        pa.float32(),
        "how far apart the two classes' evidence lies: distance of their middles in units of their mean spread, >= 0; "
        "null without two",
    ),
    _field(
        "runner_up_distance",
        pa.float32(),
        "the same for the prediction and the second most probable class, of an image that is predicted as labelled: "
        "how far two readings of one image usually lie apart in this dataset; else null",
    ),
    _field(
        "evidence_swing",
        pa.float32(),
        "how much more likely the two classes are, each, in the half of the image where its own evidence lies than in "
        "the other's, either seen alone: log-odds in nats, summed; null where the given label is not in play",
    ),
    _field(
        "runner_up_swing",
        pa.float32(),
        "the same for the prediction and the second most probable class, of some 500 images that are predicted as "
        "labelled: what is usual in this dataset; else null",
    ),
    _field(
        "squeeze_shift",
        pa.float32(),
        "in [0, 1]: total variation distance between the probabilities of the image and of its smoothed copy",
    ),
    _field("squeeze_pred", pa.int32(), "predicted label of the smoothed copy"),
    _field(
        "squeeze_overlap",
        pa.float32(),
        "in [0, 1]: how far the evidence on the image and on its smoothed copy coincides; null when both say the same",
    ),
)

AUDIT = _schema(
    "audit",
    _IMAGE_ID,
    _field("status", pa.string(), "`ok`, or `error`: the image could not be audited; scores are null, flags false"),
    _LABEL,
    _LABEL_NAME,
    _field(
        "label_score",
        pa.float32(),
        "in [0, 1]: estimated probability that the given label is right, by the probabilities alone; 0 or 1 where "
        "there is a `verdict`; low = suspicious; null where there is no label to judge",
    ),
    _field(
        "ambiguity_score",
        pa.float32(),
        "in [0, 1]: how probably two people who name the image agree, by the network's probabilities (three parts) and "
        "the given label, one reading more (one part): the sum of the classes' squared shares; low = suspicious",
    ),
    _field(
        "drift_score",
        pa.float32(),
        "in [0, 1]: how stable the prediction is under smoothing, 1 - `squeeze_shift`; low = suspicious; null where "
        "not computed",
    ),
    _field(
        "is_mislabeled",
        pa.bool_(),
        "the given label looks wrong, and the evidence does not contradict; or a person says that it is wrong",
    ),
    _field(
        "is_ambiguous",
        pa.bool_(),
        "the label is in doubt, and both it and the prediction can be read in the image: two objects, or two readings "
        "of one; never together with `is_mislabeled`",
    ),
    _field(
        "is_apart",
        pa.bool_(),
        "the evidence of label and prediction lies on two objects, farther apart than is usual for two readings of one "
        "in this dataset; null without two evidences",
    ),
    _field(
        "is_adversarial_drift",
        pa.bool_(),
        "an imperceptible change turns the prediction while the evidence stays in place; where it turns back to the "
        "given label, the label is not called wrong or ambiguous",
    ),
    _field(
        "suggested_label",
        pa.int32(),
        "the label the evidence speaks for, as class index: the prediction, where the image is flagged as mislabeled "
        "or ambiguous (there it is the other reading); else null",
    ),
    _field("suggested_name", pa.string(), "`suggested_label` in words"),
    _field(
        "verdict",
        pa.string(),
        "what a person said of the given label: `right` or `wrong`; null where nobody looked",
    ),
    _field(
        "is_worth_a_look",
        pa.bool_(),
        "one of the at most 50 images whose verdicts would settle most of the doubt; those of review.html",
    ),
)

ISSUES_TABLE = _schema(
    "issues",
    _field(
        "rank",
        pa.int32(),
        "1 is the row to look at first: what is certain before what is likely before what is possible "
        "(`duplicate_conflict`, `mislabeled`, `adversarial_drift`, `ambiguous`, `unreadable`), each by score",
    ),
    _IMAGE_ID,
    _field("issue", pa.string(), "one of " + ", ".join(f"`{name}`" for name in ISSUES)),
    _field(
        "score",
        pa.float32(),
        "the score behind the issue, in [0, 1], low = suspicious: `label_score`, `ambiguity_score`, `drift_score`; for "
        "`duplicate_conflict` the share of the copies that carry this label (1: only their splits differ); null for "
        "`unreadable`",
    ),
    _LABEL_NAME,
    _field(
        "suggested_name",
        pa.string(),
        "the label to consider instead, in words: as in `audit`, or the label of most copies; null where there is none",
    ),
    _field("reason", pa.string(), "why, in plain sentences"),
)

TABLES = {"manifest": MANIFEST, "evidence": EVIDENCE, "audit": AUDIT, "issues": ISSUES_TABLE}
