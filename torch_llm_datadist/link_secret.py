"""The secret that instances share so that only they can link to each other."""

from __future__ import annotations

from .errors import ParamInvalidError

SECRET_VARIABLE = "TORCH_LLM_DATADIST_LINK_SECRET"
MIN_SECRET_LENGTH = 16
MAX_SECRET_LENGTH = 1024


class SecretText(str):
    """A str that does not show itself in a ``repr``, so not in a printed dictionary of options either."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def checked_secret(name: str, value: object) -> SecretText:
    """Says what is wrong with a secret without saying the secret."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is of type {type(value).__name__}, expected a str")
    if not MIN_SECRET_LENGTH <= len(value) <= MAX_SECRET_LENGTH:
        raise ParamInvalidError(
            f"{name} has {len(value)} characters, expected {MIN_SECRET_LENGTH} to {MAX_SECRET_LENGTH}; "
            "`openssl rand -hex 32` makes a good one"
        )
    return SecretText(value)
