#include "link/counters.h"

#include <map>
#include <mutex>

namespace datadist::counters {
namespace {

struct Table {
  std::mutex mutex;
  std::map<int64_t, Counts> of_links;
};

Table& table() {
  static auto* made = new Table;
  return *made;
}

template <typename Change>
void change(int64_t link, Change how) {
  std::lock_guard lock(table().mutex);
  const auto found = table().of_links.find(link);
  if (found == table().of_links.end()) return;
  ++found->second.transfers;
  how(found->second);
}

}  // namespace

void open(int64_t link) {
  std::lock_guard lock(table().mutex);
  table().of_links[link] = {};
}

void close(int64_t link) {
  std::lock_guard lock(table().mutex);
  table().of_links.erase(link);
}

void add_success(int64_t link, uint64_t bytes) {
  change(link, [bytes](Counts& counts) { counts.bytes += bytes; });
}

void add_failure(int64_t link) {
  change(link, [](Counts& counts) { ++counts.failures; });
}

Counts of(int64_t link) {
  std::lock_guard lock(table().mutex);
  const auto found = table().of_links.find(link);
  return found == table().of_links.end() ? Counts{} : found->second;
}

}  // namespace datadist::counters
