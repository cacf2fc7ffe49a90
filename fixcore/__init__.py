"""CNN-Fixations: which pixels made a network decide, in one recorded forward pass.

    graph = fixcore.capture(model, example)        # once per model and input size
    recording = graph.record(images)               # one forward pass, recording.logits
    fixations = fixcore.backtrack(recording, target)
    boxes = fixcore.evidence_boxes(fixations)

How it goes: `backtrack` visits the graph's operations in reverse and asks the rule of each (`fixcore/rules`) where
its points came from. No gradient reaches the image; part of the network is passed backward by `rules="finer"`, by
`activity_maps` and where tokens mix (docs/algorithm.md). Source: Mopuri, Garg, Babu, "CNN Fixations", IEEE TIP 2018.
"""

from fixcore.backtrack import backtrack
from fixcore.errors import CaptureError, FixcoreError, InputError, MissingRule, TargetError
from fixcore.evidence.activity import activity_maps
from fixcore.evidence.boxes import (
    box_iou,
    evidence_boxes,
    max_sum_boxes,
    moment_boxes,
    threshold_boxes,
    threshold_region_boxes,
)
from fixcore.evidence.comparison import evidence_distance, evidence_halves, evidence_overlap
from fixcore.evidence.fixations import Fixations, LayerPoints, drop_outliers, join_targets
from fixcore.evidence.guided_filter import guided_filter
from fixcore.evidence.saliency import saliency_maps, saliency_masks
from fixcore.network.capture import capture, capture_all
from fixcore.network.graph import Graph, Recording
from fixcore.start import Start, usual_contrast

__all__ = [
    "CaptureError",
    "Fixations",
    "FixcoreError",
    "Graph",
    "InputError",
    "LayerPoints",
    "MissingRule",
    "Recording",
    "Start",
    "TargetError",
    "activity_maps",
    "backtrack",
    "box_iou",
    "capture",
    "capture_all",
    "drop_outliers",
    "evidence_boxes",
    "evidence_distance",
    "evidence_halves",
    "evidence_overlap",
    "guided_filter",
    "join_targets",
    "max_sum_boxes",
    "moment_boxes",
    "saliency_maps",
    "saliency_masks",
    "threshold_boxes",
    "threshold_region_boxes",
    "usual_contrast",
]
