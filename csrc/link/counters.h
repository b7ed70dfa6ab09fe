// What each link has carried, for those who watch over an instance.
#pragma once

#include <cstdint>

namespace datadist::counters {

// Of the transfers that this end began and that have ended.
struct Counts {
  uint64_t transfers = 0;
  uint64_t failures = 0;  // of those
  uint64_t bytes = 0;     // of the others
};

void open(int64_t link);
void close(int64_t link);
// Of a link that is closed nothing is counted.
void add_success(int64_t link, uint64_t bytes);
void add_failure(int64_t link);
Counts of(int64_t link);

}  // namespace datadist::counters
