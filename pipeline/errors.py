"""What a user can do wrong, as exceptions whose message is the one line the command prints.

AuditError
├── ConfigError          an unknown key, a value out of range
├── DatasetError         no such folder, no image in it, one class only
├── ModelError           an unknown model, weights that do not fit, a download that is impossible
├── ProbabilitiesError   probabilities of the wrong width, ids that do not match
├── RunFolderError       a run folder that cannot be written, is complete already, or is not a run
│   └── OtherVersionError    a run whose columns mean something else
└── VerdictsError        a file of verdicts that cannot be read, or is of other images
"""


class AuditError(Exception):
    """Something the user can mend; the message says what, where, and what to do next, in one line."""


class ConfigError(AuditError):
    """A configuration value is unknown or out of range."""


class DatasetError(AuditError):
    """The dataset as a whole cannot be audited; a single bad image never raises, it becomes a row."""


class ModelError(AuditError):
    """The model or its weights cannot be had or do not fit the dataset."""


class ProbabilitiesError(AuditError):
    """The probabilities brought by the user cannot be used as they are."""


class RunFolderError(AuditError):
    """A run folder cannot be written, or what is asked for is not in it."""


class OtherVersionError(RunFolderError):
    """A run of another schema version: its columns mean something else, or are not there."""

    def __init__(self, run: object) -> None:
        super().__init__(f"{run} was written by another version of fixaudit; run the audit again")


class VerdictsError(AuditError):
    """What people said of labels cannot be used as it stands."""
