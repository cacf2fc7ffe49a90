"""What a walk found: fixations, and the boxes, maps and masks made of them.

fixations   pixels and their masses, strays
boxes       boxes around them, and around maps
regions     connected parts of a map
saliency    maps and masks
activity    how strongly the network responds, whatever the class
comparison  the evidence of two classes: overlap, distance, halves
"""
