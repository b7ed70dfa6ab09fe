"""Keys: how one instance names a cache of another."""

from __future__ import annotations

from . import checks
from .messages import refusal

INVALID_ID = 2**64 - 1


def _named_arguments(
    owner: str, names: tuple[str, ...], required: int, args: tuple[object, ...], kwargs: dict[str, object]
) -> dict[str, object]:
    """The original's calling convention: positions win over keywords, ``cluster_id`` over its old name."""
    if len(args) > len(names):
        raise refusal("too_many_arguments", asked=owner, value=len(args), count=len(names), names=names)
    unknown = set(kwargs) - set(names) - {"prompt_cluster_id"}
    if unknown:
        raise refusal("no_such_argument", asked=owner, value=sorted(unknown), names=names)
    given = dict(kwargs)
    if "prompt_cluster_id" in given:
        old_name = given.pop("prompt_cluster_id")
        given.setdefault("cluster_id", old_name)
    given.update(zip(names, args, strict=False))
    for name in names[:required]:
        if name not in given:
            raise refusal("argument_is_missing", asked=owner, value=name)
    return given


class _Key:
    """A tuple of integers with names; two keys with the same numbers are equal."""

    _names: tuple[str, ...]

    def _numbers(self) -> tuple[int, ...]:
        return tuple(getattr(self, name) for name in self._names)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, _Key) and self._numbers() == other._numbers()

    def __hash__(self) -> int:
        return hash((type(self), self._numbers()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)}" for name in self._names)
        return f"{type(self).__name__}({fields})"


class BlocksCacheKey(_Key):
    """Names a blocks (paged) cache: ``BlocksCacheKey(cluster_id, model_id=0)``.

    In a transfer ``cluster_id`` is the remote instance that holds the cache; when a cache is registered with
    a key only ``model_id`` counts. An instance has one addressable blocks cache per ``model_id``, the one
    registered last.

    Args:
        cluster_id: uint64, required; the old name ``prompt_cluster_id`` is accepted.
        model_id: uint64.

    Raises:
        TypeError, ValueError: not an int, or outside uint64.
        LLMException: missing, too many or unknown arguments (``LLM_PARAM_INVALID``).

    Source: seed 002 BlocksCacheKey.

    >>> prefill.cache_manager.push_blocks(BlocksCacheKey(2), source, [0, 1], [3, 4])
    """

    _names = ("cluster_id", "model_id")

    def __init__(self, *args: object, **kwargs: object) -> None:
        given = _named_arguments("BlocksCacheKey", self._names, 1, args, kwargs)
        self._cluster_id = checks.uint64("BlocksCacheKey: cluster_id", given["cluster_id"])
        self._model_id = checks.uint64("BlocksCacheKey: model_id", given.get("model_id", 0))

    @property
    def cluster_id(self) -> int:
        """uint64: in a transfer the remote instance."""
        return self._cluster_id

    @property
    def prompt_cluster_id(self) -> int:
        """The older name of ``cluster_id``."""
        return self._cluster_id

    @property
    def model_id(self) -> int:
        """uint64: which blocks cache of that instance."""
        return self._model_id


class CacheKey(_Key):
    """Names one batch entry of a contiguous cache: ``CacheKey(cluster_id, req_id, model_id=0,
    prefix_id=2**64-1)``.

    All uint64. ``req_id = 2**64-1`` is the placeholder for an unused batch index. Errors as
    ``BlocksCacheKey``.

    Source: manual page CacheKey.

    >>> desc = CacheDesc(2, [2, 64], DataType.DT_FLOAT16)
    >>> keys = [llm_datadist.CacheKey(1, req_id=7), llm_datadist.CacheKey(1, req_id=8)]
    >>> cache = prefill.cache_manager.allocate_cache(desc, keys)  # key i names batch entry i
    >>> prefill.cache_manager.remove_cache_key(keys[0])
    """

    _names = ("cluster_id", "req_id", "model_id", "prefix_id")

    def __init__(self, *args: object, **kwargs: object) -> None:
        given = _named_arguments("CacheKey", self._names, 2, args, kwargs)
        self._cluster_id = checks.uint64("CacheKey: cluster_id", given["cluster_id"])
        self._req_id = checks.uint64("CacheKey: req_id", given["req_id"])
        self._model_id = checks.uint64("CacheKey: model_id", given.get("model_id", 0))
        self._prefix_id = checks.uint64("CacheKey: prefix_id", given.get("prefix_id", INVALID_ID))

    @property
    def cluster_id(self) -> int:
        """uint64: in a transfer the remote instance."""
        return self._cluster_id

    @property
    def prompt_cluster_id(self) -> int:
        """The older name of ``cluster_id``."""
        return self._cluster_id

    @property
    def req_id(self) -> int:
        """uint64: the request; 2**64-1 is none."""
        return self._req_id

    @property
    def model_id(self) -> int:
        """uint64: tells models with the same requests apart."""
        return self._model_id

    @property
    def prefix_id(self) -> int:
        """uint64: a prefix in place of a request; 2**64-1 is none."""
        return self._prefix_id


class CacheKeyByIdAndIndex(_Key):
    """Names batch entry ``batch_index`` of the cache with ``cache_id`` (1, 2, … in the order of
    registration).

    Args:
        cluster_id: uint64, the remote instance.
        cache_id: int64.
        batch_index: uint32.

    Source: manual page CacheKeyByIdAndIndex.

    >>> key = llm_datadist.CacheKeyByIdAndIndex(2, theirs.cache_id, batch_index=2)
    >>> prefill.cache_manager.push_cache(key, ours, src_batch_index=0)
    """

    _names = ("cluster_id", "cache_id", "batch_index")

    def __init__(self, cluster_id: int, cache_id: int, batch_index: int = 0) -> None:
        self._cluster_id = checks.uint64("CacheKeyByIdAndIndex: cluster_id", cluster_id)
        self._cache_id = checks.int64("CacheKeyByIdAndIndex: cache_id", cache_id)
        self._batch_index = checks.uint32("CacheKeyByIdAndIndex: batch_index", batch_index)

    @property
    def cluster_id(self) -> int:
        """uint64: in a transfer the remote instance."""
        return self._cluster_id

    @property
    def cache_id(self) -> int:
        """int64: ``Cache.cache_id`` at that instance."""
        return self._cache_id

    @property
    def batch_index(self) -> int:
        """uint32: the batch entry; 0 for a blocks cache."""
        return self._batch_index
