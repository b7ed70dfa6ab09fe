"""2.1: enumerations, status codes, exceptions."""

from __future__ import annotations

import inspect
import pickle

import pytest

from tests.conformance.case import check_raises
from torch_llm_datadist import errors
from torch_llm_datadist.cluster import LLMRole
from torch_llm_datadist.data_type import DataType, Placement, element_bytes, from_torch_dtype, torch_dtype
from torch_llm_datadist.errors import LLMException, LLMStatusCode, Status, class_for_code
from torch_llm_datadist.transfer import Memtype, RegisterMemStatus

INVALID = LLMStatusCode.LLM_PARAM_INVALID

CODES = {
    "LLM_SUCCESS": 0, "LLM_FAILED": 4294967295, "LLM_WAIT_PROCESS_TIMEOUT": 1343270913,
    "LLM_KV_CACHE_NOT_EXIST": 1343270914, "LLM_REPEAT_REQUEST": 1343270915,
    "LLM_REQUEST_ALREADY_COMPLETED": 1343270916, "LLM_PARAM_INVALID": 1343270917,
    "LLM_ENGINE_FINALIZED": 1343270918, "LLM_NOT_YET_LINK": 1343270919, "LLM_ALREADY_LINK": 1343270920,
    "LLM_LINK_FAILED": 1343270921, "LLM_UNLINK_FAILED": 1343270922,
    "LLM_NOTIFY_PROMPT_UNLINK_FAILED": 1343270923, "LLM_CLUSTER_NUM_EXCEED_LIMIT": 1343270924,
    "LLM_PROCESSING_LINK": 1343270925, "LLM_DEVICE_OUT_OF_MEMORY": 1343270926,
    "LLM_PREFIX_ALREADY_EXIST": 1343270927, "LLM_PREFIX_NOT_EXIST": 1343270928,
    "LLM_SEQ_LENOVERLIMIT": 1343270929, "LLM_NO_FREE_BLOCK": 1343270930,
    "LLM_BLOCKS_OUT_OF_MEMORY": 1343270931, "LLM_EXIST_LINK": 1343270936,
    "LLM_FEATURE_NOT_ENABLED": 1343270937, "LLM_TIMEOUT": 1343270938, "LLM_LINK_BUSY": 1343270939,
    "LLM_OUT_OF_MEMORY": 1343270940, "LLM_DEVICE_MEM_ERROR": 507053, "LLM_SUSPECT_REMOTE_ERROR": 507057,
    "LLM_UNKNOWN_ERROR": -1,
}  # fmt: skip


@pytest.mark.parametrize("name", CODES)
def test_each_status_code_has_the_originals_number(name: str) -> None:
    assert int(LLMStatusCode[name]) == CODES[name]


def test_there_are_no_other_status_codes() -> None:
    assert [code.name for code in LLMStatusCode] == [*CODES]


def test_status_code_prints_its_name() -> None:
    assert str(LLMStatusCode.LLM_TIMEOUT) == f"{LLMStatusCode.LLM_TIMEOUT}" == "LLMStatusCode.LLM_TIMEOUT"


@pytest.mark.parametrize("code", [c for c in LLMStatusCode if c])
def test_each_code_has_an_exception_class_that_carries_it(code: LLMStatusCode) -> None:
    error = class_for_code(int(code))("what happened")

    assert (error.status_code, error.code) == (code, code)
    assert isinstance(error, RuntimeError)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.args, copy.status_code) == (type(error), error.args, code)


@pytest.mark.parametrize("code", [0, 507046, 12345])
def test_other_numbers_are_failures(code: int) -> None:
    assert class_for_code(code)("x").status_code == LLMStatusCode.LLM_FAILED


def test_no_exception_carries_success() -> None:
    """Mended: without a code it is LLM_SUCCESS in the original."""
    assert LLMException().status_code == LLMStatusCode.LLM_FAILED
    assert LLMException("x", status_code=LLMStatusCode.LLM_SUCCESS).code == LLMStatusCode.LLM_FAILED
    assert LLMException("x", status_code=LLMStatusCode.LLM_TIMEOUT).code == LLMStatusCode.LLM_TIMEOUT
    for kind in vars(errors).values():
        if inspect.isclass(kind) and issubclass(kind, LLMException):
            assert kind().status_code != LLMStatusCode.LLM_SUCCESS


def test_status() -> None:
    assert Status(LLMStatusCode.LLM_SUCCESS).is_ok()
    assert not Status(LLMStatusCode.LLM_TIMEOUT).is_ok()
    assert Status(LLMStatusCode.LLM_TIMEOUT).status_code == LLMStatusCode.LLM_TIMEOUT
    check_raises(TypeError, lambda: Status(0))  # type: ignore[arg-type]


def test_enumerations_have_the_original_numbers() -> None:
    assert [(r.name, int(r)) for r in LLMRole] == [("PROMPT", 1), ("DECODER", 2), ("MIX", 3)]
    assert str(LLMRole.MIX) == "LLMRole.MIX"
    assert [(p.name, int(p)) for p in Placement] == [("HOST", 0), ("DEVICE", 1)]
    assert [(m.name, m.value) for m in Memtype] == [("MEM_TYPE_DEVICE", 0), ("MEM_TYPE_HOST", 1)]
    assert [(r.name, r.value) for r in RegisterMemStatus] == [("OK", 0), ("PREPARING", 1), ("FAILED", 2)]


DATA_TYPES = {
    "DT_FLOAT": (0, 4), "DT_FLOAT16": (1, 2), "DT_INT8": (2, 1), "DT_INT32": (3, 4), "DT_UINT8": (4, 1),
    "DT_INT16": (6, 2), "DT_UINT16": (7, 2), "DT_UINT32": (8, 4), "DT_INT64": (9, 8), "DT_UINT64": (10, 8),
    "DT_DOUBLE": (11, 8), "DT_BOOL": (12, 1), "DT_STRING": (13, 16), "DT_BF16": (27, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA_TYPES)
def test_each_data_type_has_the_originals_number_and_size(name: str) -> None:
    assert (DataType[name].value, element_bytes(DataType[name])) == DATA_TYPES[name]


def test_there_are_no_other_data_types() -> None:
    assert [d.name for d in DataType] == [*DATA_TYPES]


@pytest.mark.parametrize("data_type", [d for d in DataType if d != DataType.DT_STRING])
def test_each_data_type_has_a_torch_dtype_of_its_size(data_type: DataType) -> None:
    dtype = torch_dtype(data_type)

    assert dtype.itemsize == element_bytes(data_type)
    assert from_torch_dtype(dtype) == data_type


def test_data_types_without_a_counterpart_are_refused() -> None:
    import torch

    check_raises(INVALID, lambda: torch_dtype(DataType.DT_STRING))
    check_raises(INVALID, lambda: from_torch_dtype(torch.complex64))
