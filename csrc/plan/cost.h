// What a transfer takes, direct and packed, on the products that there are figures for. Pure arithmetic.
#pragma once

#include <cstdint>

namespace datadist {

// Published: benchmarks/performance.md of HIXL (128 MiB in blocks of one size, one machine). Derived: from
// those rows, as t(block) = task + block / rate through the smallest and the largest block. Assumed: no
// public figure is known; to be replaced by a measurement.
struct ProductCosts {
  const char* name;
  double submit_copy_us;    // host time of a call that queues a copy; published: 16 KiB each at 2.87 GB/s
  double submit_kernel_us;  // of the two calls that queue a kernel; assumed
  double submit_word_us;    // of a value write or wait; assumed
  double task_us;           // a task on its stream before bytes move; derived
  double kernel_us;         // the same for a kernel; assumed
  double memory_gb_s;       // device memory, read and write together; nominal
  double link_gb_s;         // to a peer; published
};

constexpr ProductCosts kA2Costs{"A2", 5.7, 10.0, 2.0, 1.0, 5.0, 1600.0, 20.3};
constexpr ProductCosts kA3Costs{"A3", 5.7, 10.0, 2.0, 0.8, 5.0, 1600.0, 165.0};

// By the name that the runtime has for the chip; A3 for one that there are no figures for.
const ProductCosts& costs_of(const char* soc_name);

struct TransferSize {
  int64_t bytes = 0;
  int64_t layers = 0;
  int64_t copies = 0;  // direct: what is left after merging
  int64_t chunks = 0;  // packed: copies
  int64_t pieces = 0;  // packed: kernels at either end
};

// From the first task on the sender's stream to the last arrival flag. Submitting and running overlap.
double direct_us(const ProductCosts& costs, const TransferSize& size);
// Likewise, to the last local gate: gather, copy, scatter, and the words between them.
double packed_us(const ProductCosts& costs, const TransferSize& size);

}  // namespace datadist
