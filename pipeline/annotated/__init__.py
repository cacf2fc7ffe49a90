"""Datasets in which people marked where things are: boxes or masks, as their authors ship them.

annotation   one image with its boxes or its mask
xml          ILSVRC and VOC: one XML file per image
coco         COCO: one JSON file
table        CSV: one row per box, or Kaggle's ILSVRC solution
masks        MSRA-B, ECSSD, Graz-02: one mask per image, or per object
reader       which of them a path is
"""

from pipeline.annotated.annotation import Annotated, AnnotatedImage, AnnotatedSet
from pipeline.annotated.reader import FORMATS, read_annotated

__all__ = ["FORMATS", "Annotated", "AnnotatedImage", "AnnotatedSet", "read_annotated"]
