"""Other methods that say where a network's evidence lies, to be measured beside the fixations.

Every method is a function `explain(graph, images, target) -> maps`: a captured network, float (N, C, H, W), one class
per image int64 (N,); float32 (N, H, W), >= 0, on no particular scale. They run the captured operations, so that an
activation written as a function, in place or as a module is the same to them.

gradients     gradient, deconvolution, guided backpropagation
class_maps    CAM, Grad-CAM, Guided Grad-CAM
excitation    excitation backpropagation, contrastive
occlusion     what is lost when a patch is covered
replay        the forward pass with gradients, which the above share
class_model   an image that the network takes for a class
graph_cut     the object that a map points at, cut out of the picture by its colours
"""

from fixcore.baselines.class_maps import cam, grad_cam, guided_grad_cam
from fixcore.baselines.class_model import class_model
from fixcore.baselines.excitation import contrastive_excitation_backprop, excitation_backprop
from fixcore.baselines.gradients import deconvnet, gradient, guided_backprop
from fixcore.baselines.graph_cut import graph_cut_masks
from fixcore.baselines.occlusion import occlusion

__all__ = [
    "cam",
    "class_model",
    "contrastive_excitation_backprop",
    "deconvnet",
    "excitation_backprop",
    "grad_cam",
    "gradient",
    "graph_cut_masks",
    "guided_backprop",
    "guided_grad_cam",
    "occlusion",
]
