#pragma once

#include <cstddef>
#include <cstdint>

namespace emu {

// Which machine is emulated: what the chip can do, and how old the driver is. (Which CANN it has is a matter
// of the library that was loaded: it must not even show the functions that a level lacks. See version.h.)
struct Profile {
  enum class Product : uint8_t { A2, A3, P950PR, P950DT };

  Product product = Product::A2;
  int driver_major = 26;
  int driver_minor = 0;
  // Whether a value write may go to an address imported from another process: an open question of hardware.
  bool values_reach_peers = true;

  // From TORCH_LLM_DATADIST_EMULATE_PROFILE, …_DRIVER and …_REFUSE_PEER_VALUES. A name that means nothing
  // ends the process: on any other machine than the one asked for, the answers would mislead.
  static Profile from_environment();

  const char* soc_name() const;
  bool is_950() const { return product == Product::P950PR || product == Product::P950DT; }

  bool has_fabric() const { return product == Product::A3; }     // fabric handles, links between servers
  bool has_two_links() const { return product == Product::A3; }  // SIO beside HCCS
  bool has_uncached_reserve() const { return product == Product::A3; }  // aclrtReserveMemAddressNoUCMemory
  bool has_counting_notify() const { return is_950(); }
  bool has_ipc_sync() const { return product != Product::P950DT; }  // IPC notifies and IPC events
  bool retains_handles() const { return driver_major >= 26; }       // aclrtMemRetainAllocationHandle

  // The runtime cuts larger copies between host and device into tasks of this many bytes.
  size_t host_copy_piece() const { return size_t{is_950() ? 256U : 64U} << 20; }
};

}  // namespace emu
