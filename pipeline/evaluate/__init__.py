"""Evidence measured: protocols over datasets in which people marked where things are.

subject       the network under test, and how it is shown images
batches       annotated images as the network sees them, with the truth in its pixels
boxes         localization, pointing, proposals
maps          saliency, faithfulness, sanity, sensitivity
tune          what the choices behind the evidence box are worth
gallery       one sheet of pictures: images and methods, images and layers
table         results as text, JSON and a plot
"""

from pipeline.evaluate.protocols import PROTOCOLS, Request, evaluate
from pipeline.evaluate.table import Table

__all__ = ["PROTOCOLS", "Request", "Table", "evaluate"]
