"""Status codes of LLM-DataDist and the exceptions that carry them.

Every exception class here stands for one code, so ``except LinkBusyError`` works; ``except LLMException``
with a look at ``.status_code`` works as it does with the original. No exception carries ``LLM_SUCCESS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar

from .messages import refusal

if TYPE_CHECKING:
    from .blocks_in_doubt import BlocksInDoubt

_BASE = 0x5010B000


class LLMStatusCode(IntEnum):
    """Result of an LLM-DataDist call. Source: manual page LLMStatusCode.

    >>> llm_datadist.LLMStatusCode(1343270938)
    <LLMStatusCode.LLM_TIMEOUT: 1343270938>
    """

    LLM_SUCCESS = 0
    LLM_FAILED = 0xFFFFFFFF
    LLM_WAIT_PROCESS_TIMEOUT = _BASE + 0x01
    LLM_KV_CACHE_NOT_EXIST = _BASE + 0x02
    LLM_REPEAT_REQUEST = _BASE + 0x03
    LLM_REQUEST_ALREADY_COMPLETED = _BASE + 0x04
    LLM_PARAM_INVALID = _BASE + 0x05
    LLM_ENGINE_FINALIZED = _BASE + 0x06
    LLM_NOT_YET_LINK = _BASE + 0x07
    LLM_ALREADY_LINK = _BASE + 0x08
    LLM_LINK_FAILED = _BASE + 0x09
    LLM_UNLINK_FAILED = _BASE + 0x0A
    LLM_NOTIFY_PROMPT_UNLINK_FAILED = _BASE + 0x0B
    LLM_CLUSTER_NUM_EXCEED_LIMIT = _BASE + 0x0C
    LLM_PROCESSING_LINK = _BASE + 0x0D
    LLM_DEVICE_OUT_OF_MEMORY = _BASE + 0x0E
    LLM_PREFIX_ALREADY_EXIST = _BASE + 0x0F
    LLM_PREFIX_NOT_EXIST = _BASE + 0x10
    LLM_SEQ_LENOVERLIMIT = _BASE + 0x11
    LLM_NO_FREE_BLOCK = _BASE + 0x12
    LLM_BLOCKS_OUT_OF_MEMORY = _BASE + 0x13
    LLM_EXIST_LINK = _BASE + 0x18
    LLM_FEATURE_NOT_ENABLED = _BASE + 0x19
    LLM_TIMEOUT = _BASE + 0x1A
    LLM_LINK_BUSY = _BASE + 0x1B
    LLM_OUT_OF_MEMORY = _BASE + 0x1C
    LLM_DEVICE_MEM_ERROR = 507053
    LLM_SUSPECT_REMOTE_ERROR = 507057
    LLM_UNKNOWN_ERROR = -1

    def __str__(self) -> str:
        return f"LLMStatusCode.{self.name}"


def status_code_of(value: int) -> LLMStatusCode:
    """The member with this number; ``LLM_FAILED`` for a number that is none."""
    try:
        return LLMStatusCode(value)
    except ValueError:
        return LLMStatusCode.LLM_FAILED


class Status:
    """A status code that can be asked whether it is good; for older callers. Source: manual page Status.

    >>> llm_datadist.Status(llm_datadist.LLMStatusCode.LLM_SUCCESS).is_ok()
    True
    """

    def __init__(self, status_code: LLMStatusCode) -> None:
        if not isinstance(status_code, LLMStatusCode):
            raise refusal(
                "bad_type", name="Status: status_code", value=repr(status_code), expected="an LLMStatusCode"
            )
        self._status_code = status_code

    @property
    def status_code(self) -> LLMStatusCode:
        """The code that it was made with."""
        return self._status_code

    def is_ok(self) -> bool:
        """It is ``LLM_SUCCESS``."""
        return self._status_code == LLMStatusCode.LLM_SUCCESS

    def __repr__(self) -> str:
        return f"Status({self._status_code})"


class LLMException(RuntimeError):
    """What a call raises when a value is bad or the engine fails.

    ``status_code`` (and ``code``, the same) is never ``LLM_SUCCESS``: an exception that is given no code, or
    that one, carries the code of its class. ``blocks_in_doubt``, not in the original, lists what the transfer
    that failed may still write; empty where nothing of it was queued, or all of it is done. Source: manual
    page LLMException.

    >>> try:
    ...     prefill.cache_manager.push_blocks(BlocksCacheKey(99), source, [0], [0])
    ... except llm_datadist.LLMException as error:
    ...     print(type(error).__name__, error.status_code)
    NotYetLinkError LLMStatusCode.LLM_NOT_YET_LINK
    """

    default_code: ClassVar[LLMStatusCode] = LLMStatusCode.LLM_FAILED
    blocks_in_doubt: Sequence[BlocksInDoubt] = ()

    def __init__(self, *args: object, status_code: LLMStatusCode | None = None) -> None:
        super().__init__(*args)
        self._status_code = status_code or self.default_code

    @property
    def status_code(self) -> LLMStatusCode:
        """The original code, as ``LLM_TIMEOUT``."""
        return self._status_code

    @property
    def code(self) -> LLMStatusCode:
        """The same as ``status_code``."""
        return self._status_code


class EngineFailedError(LLMException):
    """A call of the runtime failed, or the instance is finalized; the message says which."""

    default_code = LLMStatusCode.LLM_FAILED


class TimeoutExceededError(LLMException):
    """A deadline passed. Transfers that were queued may still write; see the message for what is still
    usable.
    """

    default_code = LLMStatusCode.LLM_TIMEOUT


class WaitProcessTimeoutError(TimeoutExceededError):
    """Of the original; nothing here raises it."""

    default_code = LLMStatusCode.LLM_WAIT_PROCESS_TIMEOUT


class KvCacheNotExistError(LLMException):
    """No such cache: not registered here, not announced by the peer, or withdrawn since."""

    default_code = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST


class RepeatRequestError(LLMException):
    """Of the original; nothing here raises it."""

    default_code = LLMStatusCode.LLM_REPEAT_REQUEST


class RequestAlreadyCompletedError(LLMException):
    """Of the original; nothing here raises it."""

    default_code = LLMStatusCode.LLM_REQUEST_ALREADY_COMPLETED


class ParamInvalidError(LLMException):
    """A value of the right type that makes no sense. Nothing was queued."""

    default_code = LLMStatusCode.LLM_PARAM_INVALID


class EngineFinalizedError(LLMException):
    """The instance was finalized under the call."""

    default_code = LLMStatusCode.LLM_ENGINE_FINALIZED


class NotYetLinkError(LLMException):
    """There is no link to that cluster, or there is none any more."""

    default_code = LLMStatusCode.LLM_NOT_YET_LINK


class AlreadyLinkError(LLMException):
    """There is a link to that cluster already."""

    default_code = LLMStatusCode.LLM_ALREADY_LINK


class LinkFailedError(LLMException):
    """Nobody listens there, or the handshake failed; the message says why."""

    default_code = LLMStatusCode.LLM_LINK_FAILED


class UnlinkFailedError(LLMException):
    """The peer did not answer in time; the link stays."""

    default_code = LLMStatusCode.LLM_UNLINK_FAILED


class NotifyPromptUnlinkFailedError(UnlinkFailedError):
    """Of the original; nothing here raises it."""

    default_code = LLMStatusCode.LLM_NOTIFY_PROMPT_UNLINK_FAILED


class ClusterNumExceedLimitError(LLMException):
    """One of the two instances has as many links as an instance may have."""

    default_code = LLMStatusCode.LLM_CLUSTER_NUM_EXCEED_LIMIT


class ProcessingLinkError(LLMException):
    """A handshake with that cluster is under way."""

    default_code = LLMStatusCode.LLM_PROCESSING_LINK


class PrefixAlreadyExistError(LLMException):
    """Of the original; nothing here raises it."""

    default_code = LLMStatusCode.LLM_PREFIX_ALREADY_EXIST


class PrefixNotExistError(LLMException):
    """Of the original; nothing here raises it."""

    default_code = LLMStatusCode.LLM_PREFIX_NOT_EXIST


class SeqLenOverLimitError(LLMException):
    """Of the original; nothing here raises it."""

    default_code = LLMStatusCode.LLM_SEQ_LENOVERLIMIT


class NoFreeBlockError(LLMException):
    """Of the original; nothing here raises it."""

    default_code = LLMStatusCode.LLM_NO_FREE_BLOCK


class ExistLinkError(LLMException):
    """What was asked needs that there is no link."""

    default_code = LLMStatusCode.LLM_EXIST_LINK


class FeatureNotEnabledError(LLMException):
    """It is not there, or not switched on; the message says what would switch it on."""

    default_code = LLMStatusCode.LLM_FEATURE_NOT_ENABLED


class LinkBusyError(LLMException):
    """The link has no free slot or stream for one more transfer; try again when one has ended."""

    default_code = LLMStatusCode.LLM_LINK_BUSY


class OutOfMemoryError(LLMException):
    """A pool or the device has no room."""

    default_code = LLMStatusCode.LLM_OUT_OF_MEMORY


class DeviceOutOfMemoryError(OutOfMemoryError):
    """Of the original; nothing here raises it."""

    default_code = LLMStatusCode.LLM_DEVICE_OUT_OF_MEMORY


class BlocksOutOfMemoryError(OutOfMemoryError):
    """Of the original; nothing here raises it."""

    default_code = LLMStatusCode.LLM_BLOCKS_OUT_OF_MEMORY


class DeviceMemError(LLMException):
    """The runtime reports a memory error of the device."""

    default_code = LLMStatusCode.LLM_DEVICE_MEM_ERROR


class SuspectRemoteError(LLMException):
    """The runtime suspects an error of the remote device."""

    default_code = LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR


class UnknownError(LLMException):
    """Of the original; nothing here raises it."""

    default_code = LLMStatusCode.LLM_UNKNOWN_ERROR


def _with_subclasses(base: type[LLMException]) -> list[type[LLMException]]:
    return [base, *(found for child in base.__subclasses__() for found in _with_subclasses(child))]


_CLASS_FOR_CODE = {c.default_code: c for c in _with_subclasses(LLMException) if c is not LLMException}


def class_for_code(code: int) -> type[LLMException]:
    """The exception class for a code of ``LLMStatusCode``; for any other number ``EngineFailedError``.

    ``class_for_code(code)(message)`` always carries a code other than ``LLM_SUCCESS``.
    """
    return _CLASS_FOR_CODE.get(status_code_of(code), EngineFailedError)
