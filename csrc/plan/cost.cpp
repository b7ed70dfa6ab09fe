#include "plan/cost.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace datadist {
namespace {

constexpr int64_t kFollowed = 256;  // chunks that are followed one by one; more go on at the pace of the last

double moving_us(double bytes, double gb_per_s) { return bytes / gb_per_s / 1000.0; }

// A host that submits and a stream that runs what was submitted.
struct Stream {
  double submitted_us = 0;
  double ended_us = 0;
  double run(double submit_us, double task_us, double not_before_us = 0) {
    submitted_us += submit_us;
    ended_us = std::max({submitted_us, ended_us, not_before_us}) + task_us;
    return ended_us;
  }
};

}  // namespace

const ProductCosts& costs_of(const char* soc_name) {
  return std::strncmp(soc_name, "Ascend910B", 10) == 0 ? kA2Costs : kA3Costs;
}

// The copies of all layers are alike, so the slower of host and stream sets the pace, and the other one is
// ahead, or behind, by one copy.
double direct_us(const ProductCosts& costs, const TransferSize& size) {
  if (size.copies == 0) return 0;
  const auto copies = static_cast<double>(size.copies);
  // A layer has a wait before it and a flag behind it.
  const double words = 2.0 * static_cast<double>(size.layers);
  const double copy = costs.task_us + moving_us(static_cast<double>(size.bytes) / copies, costs.link_gb_s);
  const double host = copies * costs.submit_copy_us + words * costs.submit_word_us;
  const double device = copies * copy + words * costs.task_us;
  return std::max(host + costs.task_us,
                  std::max(copies * costs.submit_copy_us + copy, costs.submit_word_us + device));
}

double packed_us(const ProductCosts& costs, const TransferSize& size) {
  if (size.chunks == 0) return 0;
  const auto chunks = static_cast<double>(size.chunks);
  const double bytes = static_cast<double>(size.bytes) / chunks;
  const auto kernels = std::max<int64_t>(1, (size.pieces + size.chunks - 1) / size.chunks);
  const double share = static_cast<double>(size.pieces) / chunks / static_cast<double>(kernels);
  // A kernel reads the bytes and writes them.
  const double kernel =
      share * costs.kernel_us + moving_us(2 * bytes / static_cast<double>(kernels), costs.memory_gb_s);
  Stream sender;
  Stream receiver;
  std::array<double, 2> credits{};  // when each chunk of a window was scattered last
  double last_us = 0;
  double pace_us = 0;
  const int64_t followed = std::min(size.chunks, kFollowed);
  for (int64_t chunk = 0; chunk < followed; ++chunk) {
    const bool begins_layer = chunk * size.layers / size.chunks != (chunk - 1) * size.layers / size.chunks;
    if (chunk == 0 || begins_layer) sender.run(costs.submit_word_us, costs.task_us);
    double& credit = credits[static_cast<size_t>(chunk) % credits.size()];
    sender.run(costs.submit_word_us, costs.task_us, credit);
    for (int64_t i = 0; i < kernels; ++i) sender.run(share * costs.submit_kernel_us, kernel);
    sender.run(costs.submit_copy_us, costs.task_us + moving_us(bytes, costs.link_gb_s));
    const double landed = sender.run(costs.submit_word_us, costs.task_us);
    receiver.run(costs.submit_word_us, costs.task_us, landed);
    for (int64_t i = 0; i < kernels; ++i) receiver.run(share * costs.submit_kernel_us, kernel);
    if (begins_layer || chunk == 0) receiver.run(costs.submit_word_us, costs.task_us);
    credit = receiver.run(costs.submit_word_us, costs.task_us);
    pace_us = receiver.ended_us - last_us;
    last_us = receiver.ended_us;
  }
  return last_us + static_cast<double>(size.chunks - followed) * pace_us;
}

}  // namespace datadist
