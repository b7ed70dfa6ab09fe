// The two kernels of CANN's operator library that the plugin launches itself, on emulated memory: rows of a
// matrix by a list of indices, out of it and into it. Only what it asks for is taken: dense matrices, the
// first dimension, int64 indices. An index outside the matrix, which no kernel checks on hardware, fails the
// task.

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "acl/acl_base.h"
#include "emulator/emu.h"

#define OPAPI extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kNull = 161001;
constexpr int kInvalid = 161002;
constexpr int kKernelException = 507015;
constexpr uint64_t kWorkspace = 64;  // real kernels ask for some, so the callers must bring it

size_t size_of(aclDataType type) {
  switch (type) {
    case ACL_INT8:
      return 1;
    case ACL_INT16:
      return 2;
    case ACL_INT32:
      return 4;
    case ACL_INT64:
      return 8;
    default:
      return 0;
  }
}

}  // namespace

struct aclTensor {
  std::vector<int64_t> dims;
  aclDataType type;
  char* data;
  bool is_dense;
};

struct aclOpExecutor {
  bool scatters;
  char* matrix;  // device addresses
  int64_t rows;
  size_t row_bytes;
  char* ids;
  int64_t count;
  char* packed;
};

namespace {

struct Kernel : aclOpExecutor {
  size_t id_at(int64_t i) const { return static_cast<size_t>(i) * sizeof(int64_t); }
};

void run(void* args) {
  const auto& kernel = *static_cast<const Kernel*>(args);
  auto* const matrix = static_cast<char*>(emuHostAlias(kernel.matrix));
  const auto* const ids = static_cast<const char*>(emuHostAlias(kernel.ids));
  auto* const packed = static_cast<char*>(emuHostAlias(kernel.packed));
  if (matrix == nullptr || ids == nullptr || packed == nullptr) {
    emuFailRunningTask(kKernelException);
    return;
  }
  for (int64_t i = 0; i < kernel.count; ++i) {
    int64_t id;
    std::memcpy(&id, ids + kernel.id_at(i), sizeof id);
    if (id < 0 || id >= kernel.rows) {
      emuFailRunningTask(kKernelException);
      return;
    }
    char* const row = matrix + static_cast<size_t>(id) * kernel.row_bytes;
    char* const piece = packed + static_cast<size_t>(i) * kernel.row_bytes;
    std::memcpy(kernel.scatters ? row : piece, kernel.scatters ? piece : row, kernel.row_bytes);
  }
}

void describe(void* args, EmuFacts* facts) {
  const auto& kernel = *static_cast<const Kernel*>(args);
  const auto* const ids = static_cast<const char*>(emuHostAlias(kernel.ids));
  if (ids == nullptr) return;
  emuReads(facts, kernel.ids, kernel.id_at(kernel.count), 1, 0);
  const auto packed = kernel.scatters ? emuReads : emuWrites;
  const auto matrix = kernel.scatters ? emuWrites : emuReads;
  packed(facts, kernel.packed, static_cast<size_t>(kernel.count) * kernel.row_bytes, 1, 0);
  for (int64_t i = 0; i < kernel.count; ++i) {
    int64_t id;
    std::memcpy(&id, ids + kernel.id_at(i), sizeof id);
    if (id >= 0 && id < kernel.rows)
      matrix(facts, kernel.matrix + static_cast<size_t>(id) * kernel.row_bytes, kernel.row_bytes, 1, 0);
  }
}

void release(void* args) { delete static_cast<Kernel*>(args); }

int prepare(const aclTensor* matrix, int64_t dim, const aclTensor* index, const aclTensor* packed,
            bool scatters, uint64_t* workspace, aclOpExecutor** executor) {
  if (matrix == nullptr || index == nullptr || packed == nullptr || workspace == nullptr ||
      executor == nullptr)
    return kNull;
  const bool fits = dim == 0 && matrix->dims.size() == 2 && packed->dims.size() == 2 &&
                    index->dims.size() == 1 && index->type == ACL_INT64 && matrix->type == packed->type &&
                    size_of(matrix->type) != 0 && packed->dims[0] == index->dims[0] &&
                    packed->dims[1] == matrix->dims[1] && matrix->is_dense && packed->is_dense &&
                    index->is_dense;
  if (!fits) return kInvalid;
  *workspace = kWorkspace;
  *executor = new aclOpExecutor{scatters,        matrix->data,
                                matrix->dims[0], static_cast<size_t>(matrix->dims[1]) * size_of(matrix->type),
                                index->data,     index->dims[0],
                                packed->data};
  return 0;
}

int launch(const char* name, void* workspace, uint64_t size, aclOpExecutor* executor, void* stream) {
  const std::unique_ptr<aclOpExecutor> once(executor);  // it serves one launch
  if (executor == nullptr) return kNull;
  if (size < kWorkspace || emuHostAlias(workspace) == nullptr) return kInvalid;
  return emuLaunchCompute(stream, name, &run, &describe, new Kernel{*executor}, &release);
}

}  // namespace

OPAPI aclTensor* aclCreateTensor(const int64_t* view_dims, uint64_t view_dims_num, aclDataType data_type,
                                 const int64_t* stride, int64_t offset, aclFormat, const int64_t*, uint64_t,
                                 void* data) {
  if (view_dims == nullptr || stride == nullptr || data == nullptr) return nullptr;
  bool is_dense = true;
  int64_t expected = 1;
  for (uint64_t i = view_dims_num; i-- > 0;) {
    is_dense = is_dense && stride[i] == expected;
    expected *= view_dims[i];
  }
  return new aclTensor{{view_dims, view_dims + view_dims_num},
                       data_type,
                       static_cast<char*>(data) + static_cast<size_t>(offset) * size_of(data_type),
                       is_dense};
}

OPAPI int aclDestroyTensor(const aclTensor* tensor) {
  delete tensor;
  return 0;
}

OPAPI int aclnnIndexSelectGetWorkspaceSize(const aclTensor* self, int64_t dim, const aclTensor* index,
                                           aclTensor* out, uint64_t* workspace, aclOpExecutor** executor) {
  return prepare(self, dim, index, out, false, workspace, executor);
}

OPAPI int aclnnIndexSelect(void* workspace, uint64_t size, aclOpExecutor* executor, void* stream) {
  return launch("aclnnIndexSelect", workspace, size, executor, stream);
}

OPAPI int aclnnInplaceIndexCopyGetWorkspaceSize(aclTensor* self, int64_t dim, const aclTensor* index,
                                                const aclTensor* source, uint64_t* workspace,
                                                aclOpExecutor** executor) {
  return prepare(self, dim, index, source, true, workspace, executor);
}

OPAPI int aclnnInplaceIndexCopy(void* workspace, uint64_t size, aclOpExecutor* executor, void* stream) {
  return launch("aclnnInplaceIndexCopy", workspace, size, executor, stream);
}
