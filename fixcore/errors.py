"""What can go wrong in fixcore, as exceptions.

FixcoreError
├── CaptureError     the model cannot be exported, or is in train mode
├── MissingRule      an operation without a backtracking rule lies on the way
├── InputError       images of the wrong shape or type, activations that are not finite, settings that do not exist
└── TargetError      a class, image or node that does not exist
"""


class FixcoreError(Exception):
    """Base of all errors that a caller of fixcore can cause; the message says what, where, and what to do."""


class CaptureError(FixcoreError):
    """The model cannot be captured as it is."""


class MissingRule(FixcoreError):  # noqa: N818  # the field's word reads better than MissingRuleError
    """An operation on the way to the pixels has no backtracking rule."""


class InputError(FixcoreError):
    """Images do not fit the captured network, or another argument is none that the function takes."""


class TargetError(FixcoreError):
    """What is to be explained does not exist."""
