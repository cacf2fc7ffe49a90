"""Protocols that say how good evidence is, as functions of maps and boxes.

localization   whether the box hits the object (ILSVRC, MaxBoxAcc)
pointing       whether the peak lies on the object (pointing game)
saliency       whether the map covers the object (Graz-02, MSRA-B)
faithfulness   whether the network needs what the map shows (RISE, Grad-CAM)
randomisation  whether the map is the network's own (Adebayo et al.)
"""

from fixcore.metrics.faithfulness import Faithfulness, insertion_and_deletion, rank_correlation
from fixcore.metrics.localization import (
    Localization,
    best_iou,
    class_proposals,
    localization,
    max_box_accuracy,
    whole_and_centred,
)
from fixcore.metrics.pointing import pointing_hits
from fixcore.metrics.randomisation import layers_of, map_overlap, shuffled
from fixcore.metrics.saliency import MaskScores, MaskTally, mask_scores

__all__ = [
    "Faithfulness",
    "Localization",
    "MaskScores",
    "MaskTally",
    "best_iou",
    "class_proposals",
    "insertion_and_deletion",
    "layers_of",
    "localization",
    "map_overlap",
    "mask_scores",
    "max_box_accuracy",
    "pointing_hits",
    "rank_correlation",
    "shuffled",
    "whole_and_centred",
]
