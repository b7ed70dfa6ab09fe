"""The secret that instances share so that only they can link to each other."""

from __future__ import annotations

from .messages import refusal

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
        raise refusal("bad_type", name=name, value=f"of type {type(value).__name__}", expected="a str")
    if not MIN_SECRET_LENGTH <= len(value) <= MAX_SECRET_LENGTH:
        raise refusal(
            "secret_of_wrong_length",
            name=name,
            value=len(value),
            low=MIN_SECRET_LENGTH,
            high=MAX_SECRET_LENGTH,
        )
    return SecretText(value)
