// Entry points that exist so that torch_npu loads, and refuse by name: nothing here ever pretends to have
// worked.

#include "emulator/entry.h"

namespace emu {
namespace {

// begin() refuses every entry point of this kind, so the body is never reached.
aclError never() { return ACL_ERROR_INTERNAL_ERROR; }

}  // namespace
}  // namespace emu

#define EXPORTED extern "C" __attribute__((visibility("default")))
#define REFUSED(name, ...)                          \
  aclError name(__VA_ARGS__) {                      \
    return ENTER(name, { return ::emu::never(); }); \
  }

// Kernels: a CPU cannot run them.
REFUSED(aclrtBinaryLoadFromData, const void*, size_t, const aclrtBinaryLoadOptions*, aclrtBinHandle*)
REFUSED(aclrtBinaryGetFunction, const aclrtBinHandle, const char*, aclrtFuncHandle*)
REFUSED(aclrtGetFunctionAddr, aclrtFuncHandle, void**, void**)
REFUSED(aclrtGetHardwareSyncAddr, void**)
EXPORTED REFUSED(rtDevBinaryRegister, const void*, void**);
EXPORTED REFUSED(rtFunctionRegister, void*, const void*, const char*, const void*, uint32_t);
EXPORTED REFUSED(rtKernelLaunch, const void*, uint32_t, void*, uint32_t, void*, void*);
EXPORTED REFUSED(rtGetC2cCtrlAddr, uint64_t*, uint32_t*);

aclError aclopCompileAndExecute(const char* opType, int, const aclTensorDesc* const[],
                                const aclDataBuffer* const[], int, const aclTensorDesc* const[],
                                aclDataBuffer* const[], const aclopAttr*, aclopEngineType, aclopCompileType,
                                const char*, aclrtStream) {
  ::emu::Thread::self().wanted = opType == nullptr ? "" : opType;
  return ENTER(aclopCompileAndExecute, { return ::emu::never(); });
}

aclError aclopCompileAndExecuteV2(const char* opType, int, aclTensorDesc*[], aclDataBuffer*[], int,
                                  aclTensorDesc*[], aclDataBuffer*[], aclopAttr*, aclopEngineType,
                                  aclopCompileType, const char*, aclrtStream) {
  ::emu::Thread::self().wanted = opType == nullptr ? "" : opType;
  return ENTER(aclopCompileAndExecuteV2, { return ::emu::never(); });
}

// What only links have that an emulated machine has not.
REFUSED(aclrtMemMapSelectedLink, void*, size_t, void*, uint32_t)
REFUSED(aclrtDeviceGetP2PAtomicCapabilities, uint32_t*, const aclrtAtomicOperation*, const uint32_t, int32_t,
        int32_t)

// Counting notifies: 950 has them.
REFUSED(aclrtCntNotifyCreate, aclrtCntNotify*, uint64_t)
REFUSED(aclrtCntNotifyDestroy, aclrtCntNotify)
REFUSED(aclrtCntNotifyRecord, aclrtCntNotify, aclrtStream, aclrtCntNotifyRecordInfo*)
REFUSED(aclrtCntNotifyWaitWithTimeout, aclrtCntNotify, aclrtStream, aclrtCntNotifyWaitInfo*)
REFUSED(aclrtCntNotifyReset, aclrtCntNotify, aclrtStream)
REFUSED(aclrtCntNotifyGetId, aclrtCntNotify, uint32_t*)

// Graphs that are built by hand instead of captured, and the launch attributes of kernels.
REFUSED(aclmdlRIKernelTaskGetAttribute, aclmdlRITask, aclrtLaunchKernelAttrId, aclrtLaunchKernelAttrValue*)
REFUSED(aclmdlRIBuildBegin, aclmdlRI*, uint32_t)
REFUSED(aclmdlRIBindStream, aclmdlRI, aclrtStream, uint32_t)
REFUSED(aclmdlRIEndTask, aclmdlRI, aclrtStream)
REFUSED(aclmdlRIBuildEnd, aclmdlRI, void*)
REFUSED(aclmdlRIUnbindStream, aclmdlRI, aclrtStream)
