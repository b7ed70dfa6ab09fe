// Staging of one link: where packed tickets land here before they are scattered, and where what goes out is
// gathered. Windows of chunks (plan/packing.h); a window serves one ticket at a time at the receiver, so it
// does at the sender.
//
// The sender picks the window with its slot. It writes a chunk when it holds a credit for it, a word that the
// receiver's stream counts up: the first ones when the window is the ticket's, one more when a chunk was
// scattered. So running out of staging is a wait on the link's stream, with the ticket's deadline.
//
// What is here belongs to one generation of the link: a relinked peer gets other memory, and late bytes of an
// old one find staging that nobody scatters any more.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "acl/stream.h"
#include "link/slots.h"
#include "plan/packing.h"
#include "transport/transport.h"

namespace datadist {

// Block ids on their way to a stream: page-locked, and the same on the device.
struct IdBuffer {
  explicit IdBuffer(size_t count, int device);
  const size_t capacity;
  acl::PinnedBuffer host;
  DeviceMemory device;
  int64_t* ids() const { return host.as<int64_t>(); }
  const int64_t* on_device() const { return reinterpret_cast<const int64_t*>(device.address); }
};

class LinkStaging {
 public:
  explicit LinkStaging(int device) : device_(device) {}

  // --- ids; for threads with a context of the device. In steady state nothing is allocated.
  std::unique_ptr<IdBuffer> take_ids(size_t count);
  void give_back_ids(std::unique_ptr<IdBuffer> ids);

  // --- what lands here
  // Makes it when it is first needed. The address, of the first time only; nullptr later.
  char* make_own(size_t bytes);
  // That the peer must still be told of: the call that made it did not get to that.
  void keep_untold(Exported staging);
  std::optional<Exported> take_untold();
  size_t own_chunk_bytes() const;
  char* own_chunk(uint32_t window, uint64_t chunk) const;
  bool is_own(const char* address, size_t bytes) const;
  // False while another ticket has the window. Whoever has it may ask again.
  bool claim(uint32_t window, const void* owner);
  void release(uint32_t window, const void* owner);

  // --- what goes out
  void learn_peer(Exported staging, size_t bytes);
  bool knows_peer() const;
  size_t peer_chunk_bytes() const;  // 0 before
  // The window that fewest tickets have, and the end of that.
  uint32_t take_window(SlotUse use);
  void give_back_window(uint32_t slot);
  struct Window {
    char* peer = nullptr;
    char* own = nullptr;
    size_t chunk_bytes = 0;
  };
  // Feeding thread: maps what is the peer's, makes what is ours.
  Window prepare_window(uint32_t window, Transport& transport);
  void unmap_peer();

  // No stream of ours uses it any more. `also_own`: and nobody else writes what lands here.
  void free(bool also_own, Transport& transport);

 private:
  const int device_;
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<IdBuffer>> ids_;
  DeviceMemory own_;
  size_t own_bytes_ = 0;
  std::optional<Exported> untold_;
  std::array<const void*, kStagingWindows> owners_{};
  std::optional<Exported> peer_;
  size_t peer_bytes_ = 0;
  Mapped peer_mapping_;
  std::array<DeviceMemory, kStagingWindows> gathered_;
  std::array<int, kStagingWindows> tickets_{};  // that have each window
  std::vector<std::optional<uint32_t>> window_of_slot_;
};

}  // namespace datadist
