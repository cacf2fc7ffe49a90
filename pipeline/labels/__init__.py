"""Which labels are wrong, from probabilities alone: `find_label_errors`.

label_errors  the whole: how probable it is that each label is wrong, and a cut that sets itself
noise         two explanations that are fitted: scattered noise, transitions between classes
cut           what is flagged, by four explanations or by opinions
verdicts      whom to ask, and what the answers settle
apart         two objects or two readings
probs         probabilities that users bring
"""

from pipeline.labels.label_errors import LabelAudit, find_label_errors

__all__ = ["LabelAudit", "find_label_errors"]
