#include "acl/kernels.h"

#include <dlfcn.h>

#include <utility>

#include "error.h"

namespace datadist::acl {
namespace {

using CreateTensor = aclTensor*(const int64_t*, uint64_t, aclDataType, const int64_t*, int64_t, aclFormat,
                                const int64_t*, uint64_t, void*);
using DestroyTensor = int(const aclTensor*);
using PrepareSelect = int(const aclTensor*, int64_t, const aclTensor*, aclTensor*, uint64_t*,
                          aclOpExecutor**);
using PrepareCopy = int(aclTensor*, int64_t, const aclTensor*, const aclTensor*, uint64_t*, aclOpExecutor**);
using Launch = int(void*, uint64_t, aclOpExecutor*, aclrtStream);

struct Library {
  CreateTensor* create_tensor = nullptr;
  DestroyTensor* destroy_tensor = nullptr;
  PrepareSelect* prepare_select = nullptr;
  PrepareCopy* prepare_copy = nullptr;
  Launch* select = nullptr;
  Launch* copy = nullptr;
  std::string why_missing;
};

// By its name, as torch_npu finds it; else beside libascendcl.so, where the emulator's is (of older CANN
// levels, one folder up).
void* open_library() {
  if (void* found = dlopen("libopapi.so", RTLD_LAZY | RTLD_LOCAL)) return found;
  Dl_info runtime;
  if (dladdr(reinterpret_cast<void*>(&aclrtMemcpyAsync), &runtime) == 0) return nullptr;
  std::string folder = runtime.dli_fname;
  for (int up = 0; up < 2; ++up) {
    const size_t slash = folder.rfind('/');
    if (slash == std::string::npos) return nullptr;
    folder.resize(slash);
    if (void* found = dlopen((folder + "/libopapi.so").c_str(), RTLD_LAZY | RTLD_LOCAL)) return found;
  }
  return nullptr;
}

Library load() {
  Library library;
  void* const handle = open_library();
  if (handle == nullptr) {
    library.why_missing = "libopapi.so, CANN's operator library, is not found";
    return library;
  }
  const auto find = [&](auto*& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    if (function == nullptr && library.why_missing.empty())
      library.why_missing = join("libopapi.so, CANN's operator library, has no ", name);
  };
  find(library.create_tensor, "aclCreateTensor");
  find(library.destroy_tensor, "aclDestroyTensor");
  find(library.prepare_select, "aclnnIndexSelectGetWorkspaceSize");
  find(library.select, "aclnnIndexSelect");
  find(library.prepare_copy, "aclnnInplaceIndexCopyGetWorkspaceSize");
  find(library.copy, "aclnnInplaceIndexCopy");
  return library;
}

const Library& library() {
  static const Library loaded = load();
  return loaded;
}

aclTensor* matrix_of(aclDataType type, int64_t rows, int64_t columns, void* data) {
  const int64_t dims[] = {rows, columns};
  const int64_t strides[] = {columns, 1};
  return library().create_tensor(dims, 2, type, strides, 0, ACL_FORMAT_ND, dims, 2, data);
}

struct Element {
  aclDataType type;
  size_t bytes;
};

// The widest that all rows are aligned to: bytes are moved, whatever they mean.
Element element_of(const RowMove& move) {
  const auto all =
      reinterpret_cast<uintptr_t>(move.matrix) | reinterpret_cast<uintptr_t>(move.packed) | move.row_bytes;
  if (all % 4 == 0) return {ACL_INT32, 4};
  if (all % 2 == 0) return {ACL_INT16, 2};
  return {ACL_INT8, 1};
}

}  // namespace

const std::string& RowKernel::why_missing() { return library().why_missing; }

RowKernel::~RowKernel() { destroy_tensors(); }

void RowKernel::destroy_tensors() {
  for (aclTensor** tensor : {&matrix_, &ids_, &packed_}) {
    if (*tensor != nullptr) library().destroy_tensor(std::exchange(*tensor, nullptr));
  }
}

aclError RowKernel::prepare(Kind kind, const RowMove& move) {
  destroy_tensors();
  kind_ = kind;
  const Element element = element_of(move);
  const auto columns = static_cast<int64_t>(move.row_bytes / element.bytes);
  const int64_t one = 1;
  matrix_ = matrix_of(element.type, move.rows, columns, move.matrix);
  packed_ = matrix_of(element.type, move.count, columns, move.packed);
  ids_ = library().create_tensor(&move.count, 1, ACL_INT64, &one, 0, ACL_FORMAT_ND, &move.count, 1,
                                 const_cast<int64_t*>(move.ids));
  if (matrix_ == nullptr || packed_ == nullptr || ids_ == nullptr) return ACL_ERROR_RT_INTERNAL_ERROR;
  return kind == Kind::kGather
             ? library().prepare_select(matrix_, 0, ids_, packed_, &workspace_bytes_, &executor_)
             : library().prepare_copy(matrix_, 0, ids_, packed_, &workspace_bytes_, &executor_);
}

aclError RowKernel::launch(void* workspace, aclrtStream stream) {
  Launch* const start = kind_ == Kind::kGather ? library().select : library().copy;
  const aclError code = start(workspace, workspace_bytes_, std::exchange(executor_, nullptr), stream);
  destroy_tensors();
  return code;
}

const char* RowKernel::name() const {
  return kind_ == Kind::kGather ? "aclnnIndexSelect" : "aclnnInplaceIndexCopy";
}

}  // namespace datadist::acl
