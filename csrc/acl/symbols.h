// What the core calls beyond the functions that torch_npu itself links. They are looked up once at run time:
// a hard-linked symbol that the installed CANN lacks would make the whole plugin unloadable.
#pragma once

#include "acl/acl_rt.h"

// name, first CANN release that has it
#define DATADIST_ACL_SYMBOLS(X)               \
  X(aclrtValueWrite, "8.5")                   \
  X(aclrtValueWait, "8.5")                    \
  X(aclrtCreateContext, "8.0")                \
  X(aclrtDestroyContext, "8.0")               \
  X(aclrtSetStreamFailureMode, "8.0")         \
  X(aclrtDestroyStreamForce, "8.0")           \
  X(aclrtStreamQuery, "8.0")                  \
  X(aclrtQueryEventStatus, "8.0")             \
  X(aclrtSynchronizeStreamWithTimeout, "8.0") \
  X(aclrtLaunchHostFunc, "8.5")               \
  X(aclrtMemcpy2dAsync, "8.0")                \
  X(aclrtMemsetAsync, "8.0")                  \
  X(aclrtPointerGetAttributes, "8.5")         \
  X(aclrtHostRegisterV2, "8.5")               \
  X(aclrtHostUnregister, "8.0")               \
  X(aclrtStreamAbort, "8.5")

namespace datadist::acl {

// Where one of these is missing it is a null pointer, and what needs it is left out.
#define DATADIST_OPTIONAL_ACL_SYMBOLS(X)        \
  X(aclrtMemGetAddressRange, "9.0")             \
  X(aclrtMemGetAllocationGranularity, "8.0")    \
  X(aclrtMemExportToShareableHandleV2, "8.5")   \
  X(aclrtMemImportFromShareableHandleV2, "8.5") \
  X(aclrtGetDeviceInfo, "8.0")

struct Symbols {
#define DATADIST_DECLARE(name, cann) decltype(&::name) name;
  DATADIST_ACL_SYMBOLS(DATADIST_DECLARE)
  DATADIST_OPTIONAL_ACL_SYMBOLS(DATADIST_DECLARE)
#undef DATADIST_DECLARE
};

// Throws LLM_FEATURE_NOT_ENABLED naming each missing function and the CANN release that brings it.
const Symbols& symbols();

}  // namespace datadist::acl
