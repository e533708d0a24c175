"""Every error that ltsft raises on purpose.

    LtsftError
    ├── ConfigError         the project file, an option or an argument is wrong
    ├── SourceError         a data source cannot be found, read or decoded
    ├── BaseModelError      a base cannot be loaded or lacks what is needed (a masked-LM head, a fast tokenizer)
    ├── SFTFileError        an SFT folder is missing, incomplete, corrupt or of an unknown format
    ├── CompositionError    an SFT does not fit the model, the tokenizer or the other SFTs
    ├── TrainingError       a training cannot go on (loss not finite, nothing to train on)
    ├── ValidationError     data did not pass the validation gate
    ├── ReleaseError        a composition did not pass its gates, or there is nothing to release, roll back or serve
    ├── InterruptedTraining a training was asked to stop; it saved a checkpoint and can go on from there
    └── ServiceError        a service (MLflow, S3, Prefect, the cluster) refused or could not be reached
        ├── ConflictError   somebody else wrote first
        └── StoredFileError a service was reached, but what it should hold is missing or damaged

A *verdict* is final: the data, the score or the gate said no, and would say so again. A `ServiceError` and an
`InterruptedTraining` are none: the same work may well be done another time.

A message says what is wrong, the value, what is allowed and how to mend it.
"""

from __future__ import annotations


class LtsftError(Exception):
    """Root of every error raised on purpose by this project."""


class ConfigError(LtsftError):
    """The project file, an option or an argument is wrong."""


class SourceError(LtsftError):
    """A data source cannot be found, read or decoded; names the file and, where there is one, the line."""


class BaseModelError(LtsftError):
    """A base cannot be loaded, or it lacks what is needed."""


class SFTFileError(LtsftError):
    """An SFT folder is missing, incomplete, corrupt or of an unknown format."""


class CompositionError(LtsftError):
    """An SFT does not fit the model, the tokenizer or the other SFTs of the composition."""


class TrainingError(LtsftError):
    """A training cannot go on."""


class ValidationError(LtsftError):
    """Data did not pass the validation gate; nothing was trained on it."""


class ReleaseError(LtsftError):
    """A composition did not pass its gates, or there is nothing to release, to roll back to or to serve."""


class InterruptedTraining(LtsftError):  # noqa: N818 - it is no mistake of anybody
    """A training was asked to stop; it saved a checkpoint and can go on from there."""


class ServiceError(LtsftError):
    """A service (MLflow, S3, Prefect, the cluster) refused a request or could not be reached."""


class ConflictError(ServiceError):
    """Somebody else wrote first, or took over what we held; nothing of theirs was overwritten."""


class StoredFileError(ServiceError):
    """A service (S3, the registry) was reached, but what should be there is missing or damaged."""


def is_verdict(error: BaseException) -> bool:
    """Say whether an error is a verdict: trying again would end in the same way."""
    return isinstance(error, LtsftError) and not isinstance(error, ServiceError | InterruptedTraining)
