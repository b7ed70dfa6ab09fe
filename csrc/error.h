// The one exception of the native core. The code is an LLMStatusCode; Python sees the class that belongs to
// it.
#pragma once

#include <cstdint>
#include <exception>
#include <sstream>
#include <string>
#include <utility>

namespace datadist {

enum Code : int64_t {
  kSuccess = 0,
  kKvCacheNotExist = 1343270914,
  kParamInvalid = 1343270917,
  kNotYetLink = 1343270919,
  kLinkFailed = 1343270921,
  kFeatureNotEnabled = 1343270937,
  kTimeout = 1343270938,
  kLinkBusy = 1343270939,
  kOutOfMemory = 1343270940,
  kFailed = 4294967295,
};

// A code as it stands in an int32 status word: LLM_FAILED reads as -1 there.
inline int32_t status_value(int64_t code) { return static_cast<int32_t>(static_cast<uint32_t>(code)); }

class Error : public std::exception {
 public:
  Error(int64_t code, std::string message) : code_(code), message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }
  int64_t code() const { return code_; }

 private:
  int64_t code_;
  std::string message_;
};

template <typename... Parts>
std::string join(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// Throws when what is expected does not hold: require(n > 0, kParamInvalid, "push_blocks: ...", n, "...").
template <typename... Parts>
void require(bool holds, Code code, const Parts&... parts) {
  if (!holds) throw Error(code, join(parts...));
}

}  // namespace datadist
