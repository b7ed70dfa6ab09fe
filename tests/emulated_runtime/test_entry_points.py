"""Every function that torch_npu links or looks up is there, one test per group of them."""

from __future__ import annotations

import functools
import mmap
import re

import pytest

from . import acl_calls as c
from .acl_harness import torch_npu_headers
from .symbols import symbols

LINKED = {
    "life": """
        aclInit aclFinalize aclAppLog aclGetRecentErrMsg aclGetDeviceCapability aclmdlInitDump
        aclmdlSetDump aclmdlFinalizeDump
    """,
    "device": """
        aclrtSetDevice aclrtResetDevice aclrtGetDevice aclrtGetDeviceCount aclrtGetCurrentContext
        aclrtSetCurrentContext aclrtGetSocName aclrtDeviceCanAccessPeer aclrtDeviceEnablePeerAccess
        aclrtDeviceGetBareTgid
    """,
    "stream and event": """
        aclrtCreateStream aclrtCreateStreamWithConfig aclrtDestroyStream aclrtSynchronizeStream
        aclrtStreamWaitEvent aclrtCreateEventExWithFlag aclrtDestroyEvent aclrtRecordEvent
        aclrtResetEvent aclrtSynchronizeEvent aclrtEventElapsedTime aclrtProcessReport
    """,
    "memory": """
        aclrtMalloc aclrtFree aclrtMallocHost aclrtFreeHost aclrtGetMemInfo aclrtMemcpy
        aclrtMemcpyAsync aclrtMemset
    """,
    "virtual memory": """
        aclrtReserveMemAddress aclrtReleaseMemAddress aclrtMallocPhysical aclrtFreePhysical
        aclrtMapMem aclrtUnmapMem aclrtMemExportToShareableHandle aclrtMemSetPidToShareableHandle
        aclrtMemImportFromShareableHandle
    """,
    "kernels": """
        aclrtBinaryLoadFromData aclrtBinaryGetFunction aclrtGetFunctionAddr aclrtGetHardwareSyncAddr
        rtDevBinaryRegister rtFunctionRegister rtKernelLaunch rtGetC2cCtrlAddr
    """,
    "aclop": """
        aclopCompileAndExecute aclopCreateAttr aclopDestroyAttr aclopSetAttrBool aclopSetAttrInt
        aclopSetAttrFloat aclopSetAttrString aclopSetAttrDataType aclopSetAttrListBool
        aclopSetAttrListInt aclopSetAttrListFloat aclopSetAttrListListInt aclCreateTensorDesc
        aclDestroyTensorDesc aclCreateDataBuffer aclDestroyDataBuffer aclSetTensorFormat
        aclSetTensorPlaceMent aclSetTensorShape aclSetTensorDescName aclGetTensorDescDimV2
        aclGetTensorDescFormat aclGetTensorDescNumDims aclGetTensorDescType
    """,
    "profiler": """
        MsprofGetHashId MsprofRegisterCallback MsprofReportAdditionalInfo MsprofReportApi
        MsprofReportCompactInfo MsprofSysCycleTime
    """,
}
LOOKED_UP = {
    "init": """
        aclsysGetCANNVersion aclsysGetVersionStr aclrtGetDeviceInfo aclrtSetDeviceSatMode
        aclrtSetOpExecuteTimeOut aclrtSetOpExecuteTimeOutV2 aclrtSetOpWaitTimeout
        aclrtGetSysParamOpt aclrtSetSysParamOpt aclrtCtxSetSysParamOpt aclrtGetPrimaryCtxState
        aclrtSetStreamFailureMode aclrtSetStreamAttribute aclrtDestroyStreamForce
    """,
    "streams and events": """
        aclrtStreamQuery aclrtStreamGetId aclrtSynchronizeStreamWithTimeout aclrtSynchronizeDevice
        aclrtSynchronizeDeviceWithTimeout aclrtQueryEventStatus aclrtQueryEventWaitStatus
        aclrtCreateEventWithFlag aclrtEventGetTimestamp aclrtSetStreamOverflowSwitch
        aclrtGetStreamOverflowSwitch aclrtGetStreamResLimit aclrtSetStreamResLimit
        aclrtResetStreamResLimit aclrtUseStreamResInCurrentThread aclrtUnuseStreamResInCurrentThread
        aclrtGetResInCurrentThread aclrtGetDeviceResLimit aclrtSetDeviceResLimit
        aclrtResetDeviceResLimit
    """,
    "memory and host": """
        aclrtMallocAlign32 aclrtMallocHostWithCfg aclrtMemsetAsync aclrtMemcpyAsyncWithCondition
        aclrtMemcpyBatch aclrtMemcpyBatchAsync aclrtHostRegister aclrtHostRegisterV2
        aclrtHostUnregister aclrtPointerGetAttributes aclrtCmoAsync aclrtGetMemUsageInfo
    """,
    "between processes": """
        aclrtIpcMemGetExportKey aclrtIpcMemSetImportPid aclrtIpcMemImportByKey aclrtIpcMemClose
        aclrtIpcGetEventHandle aclrtIpcOpenEventHandle
    """,
    "synchronisation": """
        aclrtValueWrite aclrtValueWait aclrtLaunchCallback aclrtLaunchHostFunc aclrtSubscribeReport
        aclrtUnSubscribeReport
    """,
    "graphs": """
        aclmdlRICaptureBegin aclmdlRICaptureEnd aclmdlRICaptureGetInfo
        aclmdlRICaptureThreadExchangeMode aclmdlRICaptureTaskGrpBegin aclmdlRICaptureTaskGrpEnd
        aclmdlRICaptureTaskUpdateBegin aclmdlRICaptureTaskUpdateEnd aclmdlRIExecuteAsync
        aclmdlRIDestroy aclmdlRIGetId aclmdlRIDebugPrint aclmdlRIDebugJsonPrint
        aclmdlRICaptureToModelRIBegin aclmdlRIAddCondTask aclmdlRICondHandleCreate
        aclmdlRICondHandleGetCondPtr aclmdlRIExecute aclmdlRIGetStreams aclmdlRIGetTasksByStream
        aclmdlRITaskGetParams aclmdlRITaskSetParams aclmdlRIUpdate
    """,
    "errors": """
        aclGetRecentErrMsg aclrtPeekAtLastError aclrtGetLastError aclrtDeviceTaskAbort
        aclrtGetErrorVerbose aclrtRepairError aclrtGetMemUceInfo aclrtMemUceRepair
    """,
    "notifies": """
        aclrtCreateNotify aclrtDestroyNotify aclrtRecordNotify aclrtWaitAndResetNotify
        aclrtGetNotifyId aclrtNotifyBatchReset aclrtNotifyGetExportKey aclrtNotifyImportByKey
        aclrtNotifySetImportPid aclrtNotifySetImportPidInterServer
    """,
    "memory of the second kind": """
        aclrtMemGetAllocationGranularity aclrtMemSetAccess aclrtMemGetAccess
        aclrtMemRetainAllocationHandle aclrtMemGetAddressRange aclrtReserveMemAddressNoUCMemory
        aclrtMemExportToShareableHandleV2 aclrtMemImportFromShareableHandleV2
        aclrtMemSetPidToShareableHandleV2 aclrtIpcMemImportPidInterServer aclrtIpcMemSetAttr
    """,
    "copies": """
        aclrtMemcpyBatchV2 aclrtMemcpyBatchAsyncV2 aclrtMemcpy2d aclrtMemcpy2dAsync aclrtMemsetD32
        aclrtMemsetD32Async aclrtGetMemcpyDescSize aclrtSetMemcpyDesc aclrtMemcpyAsyncWithDesc
        aclrtMemcpyAsyncWithOffset
    """,
}


@pytest.mark.parametrize("group", [*LINKED, *LOOKED_UP])
def test_functions_of_the_group_are_there(group: str) -> None:
    shown = symbols(c.LIBRARY, "--defined-only")

    assert [name for name in {**LINKED, **LOOKED_UP}[group].split() if name not in shown] == []


# torch_npu looks these up in other libraries and does without them: a stub that succeeds would be a lie.
ABSENT = {
    "libacl_op_compiler.so": """
        aclSetCompileopt aclGetCompileopt aclGetCompileoptSize aclGenGraphAndDumpForOp
        aclCreateGraphDumpOpt aclDestroyGraphDumpOpt aclopStartDumpArgs aclopStopDumpArgs
    """,
    "libhccl.so": "HcclGetRootInfo HcclCommInitRootInfo HcclAllReduce HcclSend HcclRecv HcclCommDestroy",
    "libascendcl.so": "aclGetCannAttributeList aclGetCannAttribute aclrtLaunchKernelWithHostArgs",
}
PROFILING = """
    aclprofInit aclprofFinalize aclprofStart aclprofStop aclprofCreateConfig aclprofDestroyConfig
    aclprofSetConfig aclprofWarmup aclprofCreateStepInfo aclprofDestroyStepInfo aclprofGetStepTimestamp
    aclprofMarkEx aclprofRegisterDeviceCallback
"""


@pytest.mark.parametrize("library", ABSENT)
def test_what_torch_npu_does_without_is_absent(library: str) -> None:
    shown = symbols(c.LIBRARY.parent / library, "--defined-only")

    assert [name for name in ABSENT[library].split() if name in shown] == []


def test_functions_that_a_profiler_starts_with_are_there() -> None:
    shown = symbols(c.LIBRARY.parent / "libmsprofiler.so", "--defined-only")

    assert [name for name in PROFILING.split() if name not in shown] == []


@pytest.mark.parametrize(
    "library",
    [
        "libnnopbase",
        "libdcmi",
        "libascend_dump",
        "libhcomm",
        "libascend_ml",
        "liblcal",
        "libshmem",
        "libatb",
        "libfmk_parser",
    ],
)
def test_library_of_something_else_is_absent(library: str) -> None:
    assert not (c.LIBRARY.parent / f"{library}.so").exists()


# Every function whose name the wheel's libraries hold as a word of its own, whatever they do with it: what
# they look up is among them. Those that are not here, and why; the first expression that fits counts.
NOT_HERE = {
    r"Hccl(?!Comm$)\w+|Hcom\w*|Hcomm\w+|Lcal\w+": "communication between devices: no HCCL",
    r"aclnn\w+|aclRfft\w+|aclStft\w*|aclStressDetect": "operators of CANN: aten's kernels are the emulator's",
    r"acl(Create|Destroy)(Bool|Float|Int)Array|acl(Create|Destroy)(Scalar|Tensor)(List)?|aclDestroyAclOpExecutor"
    r"|aclGetViewShape|aclInitTensor|aclSetTensorAddr|aclGetTensorListSize": "arguments of those operators",
    r"acl(Set|Get)Compileopt(Size)?|aclGenGraphAndDumpForOp|acl\w*GraphDumpOpt|aclop(Start|Stop)DumpArgs": (
        "the compiler of operators"
    ),
    r"aclGetCannAttribute(List)?": "attributes of a CANN installation: there is none",
    r"aclrtLaunchKernelWithHostArgs": "kernels: torch_npu goes back to the launch that is refused by name",
    r"aclProfiling\w+|aclQueryEvent\w+": "no functions of CANN: names that torch_npu shows",
    r"aclprofGetSupportedFeatures(V2)?": "features of a profiler of the device",
    r"mstx(Domain\w+|Mem\w+)": "ranges of domains and of memory",
    r"msptiActivityIsEnabled": "records of kernels",
    r"dcmi\w*": "the management of boards",
    r"(acl)?shmemx?_\w+": "memory that boards share by SHMEM",
    r"aclsk\w+": "kernels that are joined to one",
}
NAMES = (
    rb"(?:acl|mspti|mstx)[a-z]*[A-Z]\w{2,60}"
    rb"|(?:rt|Msprof|Hccl|Hcomm?|Lcal)[A-Z]\w{2,60}"
    rb"|(?:dcmi(?:v2)?|(?:acl)?shmemx?)_\w{2,60}"
)


@functools.cache
def names_in_the_wheel() -> frozenset[str]:
    found: set[str] = set()
    for library in (torch_npu_headers().parent / "lib").glob("*.so"):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            words = re.finditer(rb"\0(?=[aHLMdmrs])(" + NAMES + rb")(?=\0)", content)
            found.update(word[1].decode() for word in words)
    return frozenset(found)


def test_every_name_that_torch_npu_looks_up_is_there_or_absent_for_a_reason() -> None:
    names = names_in_the_wheel()
    shown = set().union(*(symbols(path, "--defined-only") for path in c.LIBRARY.parent.glob("*.so")))

    assert len(names & shown) > 150
    assert "aclrtGetHardwareSyncAddr" in names
    missing = names - shown
    assert sorted(n for n in missing if not any(re.fullmatch(words, n) for words in NOT_HERE)) == []
    unused = [words for words in NOT_HERE if not any(re.fullmatch(words, name) for name in missing)]
    assert unused == []
