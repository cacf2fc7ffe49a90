"""Judging every image by a network that never saw it, and tracing what it saw.

folds     who judges whom
probe     linear heads on a backbone's features, one per fold
logistic  how a head is fitted
train     networks from scratch, one per fold
network   the small network that is trained
augment   how training images are varied
judge     the network and heads of one worker: logits and evidence of a batch
halves    what each half of an image says alone
squeeze   the smoothed copy that shows drift
evidence  the rows of evidence, image by image
"""
