// A copy with something armed for it: one that fails, is slow, comes in pieces, stops half done, or arrives
// changed.

#include <algorithm>
#include <thread>

#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/error.h"
#include "emulator/faults.h"
#include "emulator/interleaving.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

namespace emu {
namespace {

using std::chrono::nanoseconds;

// At a set bandwidth bytes arrive little by little, this often, so that who looks sees a copy in progress.
constexpr nanoseconds kPieceTime = std::chrono::milliseconds(1);

nanoseconds time_for(size_t bytes, uint64_t bytes_per_s) {
  return nanoseconds(
      static_cast<int64_t>(static_cast<double>(bytes) * 1e9 / static_cast<double>(bytes_per_s)));
}

void pass_until(Clock::time_point end, Stream* stream) {
  if (stream != nullptr) {
    stream->pass_time(end - Clock::now());
  } else {
    std::this_thread::sleep_until(end);
  }
}

}  // namespace

aclError Faults::move(const Copy& copy, const Device& device, Stream* stream, std::string& why) {
  const bool on_host = copy.direction == Direction::H2H;
  const Subject subject{.name = copy.call,
                        .stream = stream,
                        .device = device.id,
                        .direction = on_host ? -1 : static_cast<int32_t>(copy.direction),
                        .dst = copy.dst,
                        .src = copy.src,
                        .bytes = copy.bytes(),
                        .dst_span = copy.dst_span(),
                        .src_span = copy.src_span()};
  // Failing tasks are a stream's matter; a call that waits for its copy fails by FailCall.
  if (stream != nullptr) {
    if (const auto failing = fires(Fault::FailTask, subject)) {
      why = "fault injected by a test";
      return static_cast<aclError>(failing->rule.code);
    }
  }
  Pin dst;
  Pin src;
  if (const aclError code = pin(copy, device, dst, src, why); code != ACL_SUCCESS) return code;

  const size_t bytes = copy.bytes();
  const auto held = fires(Fault::HoldCopy, subject);
  const auto flipped = fires(Fault::FlipByte, subject);
  const uint64_t rate = on_host ? 0 : least(Fault::Bandwidth, subject);
  uint64_t piece = least(Fault::Split, subject);
  const auto shuffled =
      stream == nullptr ? std::nullopt : standing(Fault::Interleave, subject_of(*stream, copy.call));
  Interleaving* const random = shuffled ? &stream->interleaving_of(shuffled->amount) : nullptr;
  if (piece == 0 && random != nullptr) {
    const size_t pieces = random->pieces(bytes);
    if (pieces > 1) piece = (bytes + pieces - 1) / pieces;
  }
  if (piece == 0 && rate != 0)
    piece = std::max<uint64_t>(rate / (std::chrono::seconds(1) / kPieceTime), 4096);
  // Ranges that overlap are only right when they move at once.
  const bool overlaps = copy.dst < copy.src + copy.src_span() && copy.src < copy.dst + copy.dst_span();
  if (piece == 0 || overlaps) piece = bytes;
  const size_t wrong = flipped ? std::min<size_t>(flipped->rule.amount, bytes - 1) : SIZE_MAX;
  const size_t stop = held ? std::min<size_t>(held->rule.amount, bytes) : SIZE_MAX;

  const auto started = Clock::now();
  auto stopping = [&] { return stream != nullptr && stream->stopping(); };
  auto hold = [&] {
    if (is_armed(bit(Fault::Freeze))) wait_while([&] { return is_frozen(device.id, stream); }, stream);
  };
  auto reached = [&](size_t done) {
    if (done == stop) {
      block_->slots[held->slot].fired.fetch_add(1);
      wait_while([&] { return is_still_armed(*held); }, stream);
    }
    if (random != nullptr && done < bytes) stream->pass_time(random->hold());
    hold();
  };
  hold();
  if (!flipped && stop >= bytes && piece >= bytes && move_word(copy, dst, src)) {
    if (held) reached(bytes);
  } else {
    if (stop == 0) reached(0);
    for (size_t done = 0; done < bytes;) {
      if (stopping()) return ACL_ERROR_RT_STREAM_ABORT;
      size_t end = std::min<size_t>(bytes, (done / piece + 1) * piece);
      if (done < stop) end = std::min(end, stop);
      if (rate != 0) pass_until(started + time_for(end, rate), stream);
      move_part(copy, dst.host, src.host, done, end);
      if (done <= wrong && wrong < end) {
        dst.host[wrong / copy.width * copy.dst_pitch + wrong % copy.width] ^= std::byte{0xff};
      }
      done = end;
      if (done < bytes || done == stop) reached(done);
    }
  }
  if (rate != 0) pass_until(started + time_for(bytes, rate), stream);
  Runtime::get().bytes_copied.fetch_add(bytes, std::memory_order_relaxed);
  return ACL_SUCCESS;
}

}  // namespace emu
