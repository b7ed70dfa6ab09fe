// NIXL's C interface, as far as it is used, loaded when an instance is asked what it can link with: one that
// cannot be loaded is passed over, not found out when a link is made. The wheel has no headers and its
// library no version, so these declarations are ours, each symbol is looked up by name, and the first one
// that is missing is named.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace datadist::nixl {

using Handle = void*;
using Status = int;

constexpr Status kOk = 0;
constexpr Status kInProgress = 1;
constexpr int kDram = 0;
constexpr int kRead = 0;
constexpr int kWrite = 1;

struct AgentConfig {
  bool progress_thread = false;
  bool listen_thread = false;
  int listen_port = 0;
  unsigned thread_sync = 0;
  unsigned workers = 1;
  uint64_t progress_delay_us = 0;
  uint64_t listen_delay_us = 100000;
  bool telemetry = false;
};

// name in the library after "nixl_capi_", arguments
#define DATADIST_NIXL_SYMBOLS(symbol)                                                                       \
  symbol(create_configured_agent, const char*, const AgentConfig*, Handle*) symbol(                         \
      destroy_agent, Handle) symbol(get_plugin_params, Handle, const char*, Handle*, Handle*)               \
      symbol(destroy_mem_list, Handle) symbol(destroy_params, Handle) symbol(                               \
          params_add, Handle, const char*, const char*) symbol(create_backend, Handle, const char*, Handle, \
                                                               Handle*) symbol(destroy_backend, Handle)     \
          symbol(create_opt_args, Handle*) symbol(destroy_opt_args, Handle) symbol(                         \
              opt_args_add_backend, Handle, Handle) symbol(create_reg_dlist, int, Handle*,                  \
                                                           bool) symbol(destroy_reg_dlist, Handle)          \
              symbol(reg_dlist_add_desc, Handle, uintptr_t, size_t, uint64_t, const void*, size_t) symbol(  \
                  register_mem, Handle, Handle, Handle) symbol(deregister_mem, Handle, Handle, Handle)      \
                  symbol(get_local_md, Handle, void**, size_t*) symbol(                                     \
                      get_local_partial_md, Handle, Handle, void**, size_t*,                                \
                      Handle) symbol(load_remote_md, Handle, const void*, size_t, char**)                   \
                      symbol(invalidate_remote_md, Handle, const char*)                                     \
                          symbol(create_xfer_dlist, int, Handle*, bool) symbol(destroy_xfer_dlist, Handle)  \
                              symbol(xfer_dlist_add_desc, Handle, uintptr_t, size_t, uint64_t) symbol(      \
                                  create_xfer_req, Handle, int, Handle, Handle, const char*, Handle*,       \
                                  Handle) symbol(post_xfer_req, Handle, Handle, Handle)                     \
                                  symbol(get_xfer_status, Handle, Handle) symbol(                           \
                                      release_xfer_req, Handle, Handle) symbol(destroy_xfer_req, Handle)    \
                                      symbol(gen_notif, Handle, const char*, const void*, size_t, Handle)   \
                                          symbol(create_notif_map, Handle*) symbol(                         \
                                              destroy_notif_map, Handle) symbol(notif_map_clear, Handle)    \
                                              symbol(notif_map_size, Handle, size_t*) symbol(               \
                                                  notif_map_get_agent_at, Handle, size_t, const char**)     \
                                                  symbol(notif_map_get_notifs_size, Handle, const char*,    \
                                                         size_t*)                                           \
                                                      symbol(notif_map_get_notif, Handle, const char*,      \
                                                             size_t, const void**, size_t*)                 \
                                                          symbol(get_notifs, Handle, Handle, Handle)

struct Symbols {
#define DATADIST_NIXL_MEMBER(name, ...) Status (*name)(__VA_ARGS__) = nullptr;
  DATADIST_NIXL_SYMBOLS(DATADIST_NIXL_MEMBER)
#undef DATADIST_NIXL_MEMBER
};

// Where the installed package has its library; Python finds that out. The first one that could be loaded
// stays.
void set_library(std::string path);
// "" where it is there and has all symbols; loads it, once (some 50 ms).
std::string why_not();
// Throws LLM_FEATURE_NOT_ENABLED with `why_not`.
const Symbols& symbols();

}  // namespace datadist::nixl
