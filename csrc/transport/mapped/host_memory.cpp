#include "transport/mapped/host_memory.h"

#include <ATen/ops/from_blob.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>

#include "acl/check.h"
#include "acl/queue.h"
#include "acl/stream.h"
#include "error.h"
#include "link/process.h"

namespace datadist::mapped {
namespace {

// A file of memory, mapped and page-locked as long as this lives.
class SharedFile {
 public:
  SharedFile(int device, int file, size_t bytes) : device_(device), file_(file), bytes_(bytes) {
    void* at = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file_, 0);
    if (at == MAP_FAILED) {
      const int why = errno;
      close(file_);
      throw Error(kOutOfMemory,
                  join("mapping ", bytes_, " bytes of shared host memory failed: ", std::strerror(why)));
    }
    address_ = static_cast<char*>(at);
    acl::ContextScope restore;
    aclError code = acl::set_device(device_);
    if (code == 0) code = acl::lock_pages(address_, bytes_);
    if (code == 0) return;
    munmap(address_, bytes_);
    close(file_);
    acl::raise("aclrtHostRegisterV2", code);
  }
  ~SharedFile() {
    {
      acl::ContextScope restore;
      if (acl::set_device(device_) == 0) acl::unlock_pages(address_);
    }
    munmap(address_, bytes_);
    close(file_);
  }
  SharedFile(const SharedFile&) = delete;
  SharedFile& operator=(const SharedFile&) = delete;

  char* address() const { return address_; }
  size_t bytes() const { return bytes_; }
  int file() const { return file_; }

 private:
  const int device_;
  const int file_;
  const size_t bytes_;
  char* address_ = nullptr;
};

std::mutex pools_mutex;

std::map<const char*, const SharedFile*>& pools() {
  static auto* map = new std::map<const char*, const SharedFile*>;
  return *map;
}

// What a peer needs to find the file, and to know that it is the right one: descriptors are used again.
struct FileName {
  int file = -1;
  uint64_t inode = 0;
  uint64_t bytes = 0;
};

FileName name_of(int file) {
  struct stat about{};
  require(fstat(file, &about) == 0, kFailed,
          "a shared host pool cannot be looked up: ", std::strerror(errno));
  return {file, about.st_ino, static_cast<uint64_t>(about.st_size)};
}

void require_alive(const ProcessId& owner) {
  require(start_time_of(owner.pid) == owner.start_time, kNotYetLink, "process ", owner.pid, " has ended");
}

int open_file_of(const ProcessId& owner, const FileName& name) {
  const std::string path = join("/proc/", owner.pid, "/fd/", name.file);
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
  const int why = errno;
  if (file < 0) require_alive(owner);
  require(file >= 0, kLinkFailed, "the host pool of process ", owner.pid,
          " cannot be opened: ", std::strerror(why),
          "; both processes need the same user and the same /proc");
  const FileName found = name_of(file);
  // The file cannot shrink, so no access to the mapping is ever cut off.
  const bool is_sealed = (fcntl(file, F_GET_SEALS) & F_SEAL_SHRINK) != 0;
  if (found.inode != name.inode || found.bytes != name.bytes || !is_sealed ||
      start_time_of(owner.pid) != owner.start_time) {
    close(file);
    throw Error(kLinkFailed, join("descriptor ", name.file, " of process ", owner.pid,
                                  " is not the host pool that was announced"));
  }
  return file;
}

// The first number in a file, or in its line that begins with `label`; nullopt where there is none.
std::optional<uint64_t> number_in(const char* path, const std::string& label = "") {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(label, 0) != 0) continue;
    std::istringstream text(line.substr(label.size()));
    uint64_t number = 0;
    if (text >> number) return number;
  }
  return std::nullopt;
}

// Asked before any page is taken: asking for too many ends a process, and not always this one.
uint64_t free_host_bytes() {
  uint64_t free = number_in("/proc/meminfo", "MemAvailable:").value_or(UINT64_MAX >> 10) << 10;
  const auto limit = number_in("/sys/fs/cgroup/memory.max");
  const auto used = number_in("/sys/fs/cgroup/memory.current");
  if (limit && used) free = std::min(free, *limit - std::min(*limit, *used));
  return free;
}

}  // namespace

at::Tensor allocate_shared_host(int device, size_t bytes) {
  const uint64_t free = free_host_bytes();
  require(bytes <= free, kOutOfMemory, "a host pool of ", bytes, " bytes: ", free,
          " bytes of host memory are free");
  const int file = memfd_create("torch_llm_datadist_host_pool", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  require(file >= 0, kOutOfMemory, "a host pool of ", bytes, " bytes: ", std::strerror(errno));
  // Taken now: a page that is missing later would end the process that touches it.
  const int why = ftruncate(file, static_cast<off_t>(bytes)) != 0
                      ? errno
                      : posix_fallocate(file, 0, static_cast<off_t>(bytes));
  if (why != 0 || fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    close(file);
    throw Error(kOutOfMemory,
                join("a host pool of ", bytes, " bytes: ", std::strerror(why != 0 ? why : errno)));
  }
  auto pool = std::make_shared<SharedFile>(device, file, bytes);
  {
    std::lock_guard lock(pools_mutex);
    pools()[pool->address()] = pool.get();
  }
  char* const address = pool->address();
  const auto release = [pool = std::move(pool)](void* at) mutable {
    {
      std::lock_guard lock(pools_mutex);
      pools().erase(static_cast<const char*>(at));
    }
    pool.reset();
  };
  return at::from_blob(address, {static_cast<int64_t>(bytes)}, release, at::TensorOptions().dtype(at::kByte));
}

Exported export_host(const void* address) {
  const auto* at = static_cast<const char*>(address);
  std::lock_guard lock(pools_mutex);
  auto after = pools().upper_bound(at);
  if (after != pools().begin()) {
    const auto& [base, pool] = *std::prev(after);
    if (at < base + pool->bytes()) {
      const FileName name = name_of(pool->file());
      return {join(name.file, " ", name.inode, " ", name.bytes), at - base,
              reinterpret_cast<uint64_t>(address), MemoryKind::kSharedHost};
    }
  }
  return {"", 0, reinterpret_cast<uint64_t>(address), MemoryKind::kPrivateHost};
}

Mapped map_shared_host(int device, const ProcessId& owner, const Exported& memory, size_t bytes) {
  FileName name;
  std::istringstream handle(memory.handle);
  handle >> name.file >> name.inode >> name.bytes;
  const auto offset = static_cast<uint64_t>(memory.offset);
  require(!handle.fail() && memory.offset >= 0 && bytes <= name.bytes && offset <= name.bytes - bytes,
          kLinkFailed, "process ", owner.pid, " announced host memory with the handle '", memory.handle,
          "' and offset ", memory.offset);
  // One mapping of a pool serves all its caches.
  static std::mutex mutex;
  static auto* known = new std::map<std::tuple<int, int64_t, uint64_t>, std::weak_ptr<SharedFile>>;
  std::lock_guard lock(mutex);
  std::erase_if(*known, [](const auto& entry) { return entry.second.expired(); });
  auto& slot = (*known)[{owner.pid, owner.start_time, name.inode}];
  auto file = slot.lock();
  if (file == nullptr) {
    file = std::make_shared<SharedFile>(device, open_file_of(owner, name), name.bytes);
    slot = file;
  }
  return {{file->address() + offset, Reach::kPinned}, file};
}

std::shared_ptr<const int> open_memory_of(const ProcessId& owner) {
  const int file = open(join("/proc/", owner.pid, "/mem").c_str(), O_RDWR | O_CLOEXEC);
  const int why = errno;
  if (file < 0) require_alive(owner);
  // A process that is ending has no memory any more before it stops looking alive.
  require(file >= 0 || (why != ESRCH && why != ENOENT), kNotYetLink, "process ", owner.pid, " has ended");
  require(
      file >= 0, kFeatureNotEnabled, "the host memory of process ", owner.pid,
      " cannot be reached from here: ", std::strerror(why),
      "; it was registered from plain CPU tensors, which needs the right to trace that process. A cache from "
      "host_mem_pool_cfg (allocate_cache, allocate_blocks_cache) needs no such right");
  std::shared_ptr<const int> held(new int(file), [](const int* opened) {
    close(*opened);
    delete opened;
  });
  require_alive(owner);  // the file stays that process's, whoever gets its pid later
  return held;
}

}  // namespace datadist::mapped
