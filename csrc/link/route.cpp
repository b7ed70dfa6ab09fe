#include "link/route.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sstream>
#include <utility>

#include "error.h"
#include "link/handles.h"
#include "link/proof.h"
#include "link/verification.h"
#include "messages/messages.h"
#include "transport/mapped/mapped.h"

namespace datadist {
namespace {

constexpr size_t kHostPieceBytes = 4 << 20;  // of one host function: the runtime's callback thread is shared

std::string what_failed(const char* call, int64_t moved) {
  if (moved == 0) return "the peer's host memory is gone: its process has ended, or unmapped it";
  return join(call, " of the peer's host memory failed: ", std::strerror(errno));
}

// At most one end is foreign: the other is ours.
std::optional<std::string> copy_on_host(const Place& dst, const Place& src, size_t bytes) {
  if (src.reach != Reach::kForeign && dst.reach != Reach::kForeign) {
    std::memmove(dst.address, src.address, bytes);
    return std::nullopt;
  }
  const bool reads = src.reach == Reach::kForeign;
  const Place& foreign = reads ? src : dst;
  char* own = reads ? dst.address : src.address;
  auto at = static_cast<off_t>(reinterpret_cast<uintptr_t>(foreign.address));
  while (bytes > 0) {
    const ssize_t moved = reads ? pread(foreign.file, own, bytes, at) : pwrite(foreign.file, own, bytes, at);
    if (moved < 0 && errno == EINTR) continue;
    if (moved <= 0) return what_failed(reads ? "reading" : "writing", moved);
    own += moved;
    at += moved;
    bytes -= static_cast<size_t>(moved);
  }
  return std::nullopt;
}

std::string hex(uint64_t value) {
  std::ostringstream out;
  out << "0x" << std::hex << value;
  return out.str();
}

Step::Kind kind_of(Reach dst, Reach src) {
  if (is_on_device(src)) return is_on_device(dst) ? Step::kCopy : Step::kToHost;
  return is_on_device(dst) ? Step::kToDevice : Step::kCall;
}

HandleTable<HostCopies>& open_copies() {
  static auto* table = new HandleTable<HostCopies>("host copies");
  return *table;
}

}  // namespace

std::shared_ptr<HostCopies> HostCopies::make(std::function<void()> wake) {
  std::shared_ptr<HostCopies> copies(new HostCopies(std::move(wake)));
  copies->number_ = open_copies().add(copies);
  return copies;
}

Step HostCopies::add(Job job) {
  std::lock_guard lock(mutex_);
  jobs_.push_back(std::move(job));
  return {Step::kCall, reinterpret_cast<void*>(number_),
          reinterpret_cast<const void*>(static_cast<void (*)(void*)>(&HostCopies::run_next)), 0};
}

Step HostCopies::step(const Place& dst, const Place& src, size_t bytes) {
  return add({.dst = dst, .src = src, .bytes = bytes});
}

Step HostCopies::compare(const char* src, const char* dst, size_t bytes, const Compared& what,
                         size_t offset) {
  return add({.dst = {const_cast<char*>(dst), Reach::kPinned},
              .src = {const_cast<char*>(src), Reach::kPinned},
              .bytes = bytes,
              .compared = std::make_shared<Compared>(what),
              .offset = offset});
}

Step HostCopies::add_to_sum(const char* bytes, size_t count) {
  return add({.src = {const_cast<char*>(bytes), Reach::kPinned}, .bytes = count, .kind = Job::kAddToSum});
}

Step HostCopies::tell_sum(uint64_t* word) {
  return add({.dst = {reinterpret_cast<char*>(word), Reach::kPinned},
              .bytes = sizeof(uint64_t),
              .kind = Job::kTellSum});
}

Step HostCopies::check_sum(const uint64_t* word, int64_t layer) {
  return add({.src = {reinterpret_cast<char*>(const_cast<uint64_t*>(word)), Reach::kPinned},
              .bytes = sizeof(uint64_t),
              .kind = Job::kCheckSum,
              .layer = layer});
}

Step HostCopies::mark() { return add({}); }

Step HostCopies::last_mark() { return add({.is_last = true}); }

std::optional<std::string> HostCopies::failure() const {
  std::lock_guard lock(mutex_);
  return failure_;
}

size_t HostCopies::passed_marks() const {
  std::lock_guard lock(mutex_);
  return passed_marks_;
}

bool HostCopies::has_passed_last_mark() const {
  std::lock_guard lock(mutex_);
  return has_passed_last_mark_;
}

void HostCopies::close() {
  open_copies().remove(number_);
  {
    std::lock_guard lock(mutex_);
    jobs_.clear();
  }
  std::lock_guard lock(running_);
}

void HostCopies::run_next(void* number) {
  const auto copies = open_copies().find(reinterpret_cast<int64_t>(number));
  if (copies != nullptr) copies->run_next();
}

std::optional<std::string> HostCopies::run(const Job& job) {
  switch (job.kind) {
    case Job::kAddToSum:
      sum_ = sum_of(sum_, job.src.address, job.bytes);
      return std::nullopt;
    case Job::kTellSum:
      *reinterpret_cast<uint64_t*>(job.dst.address) = std::exchange(sum_, 0);
      return std::nullopt;
    case Job::kCheckSum: {
      const uint64_t found = std::exchange(sum_, 0);
      const uint64_t sent = *reinterpret_cast<const uint64_t*>(job.src.address);
      if (found == sent) return std::nullopt;
      return render(Message::sums_differ, {{"layer", job.layer}, {"value", hex(found)}, {"sent", hex(sent)}});
    }
    case Job::kBytes:
      break;
  }
  if (job.compared == nullptr) return copy_on_host(job.dst, job.src, job.bytes);
  const char* const src = job.src.address;
  const char* const dst = job.dst.address;
  if (std::memcmp(src, dst, job.bytes) == 0) return std::nullopt;
  const auto at = static_cast<size_t>(std::mismatch(src, src + job.bytes, dst).first - src);
  return job.compared->difference(job.offset + at, src[at], dst[at]);
}

void HostCopies::run_next() {
  std::lock_guard running(running_);
  Job job;
  {
    std::lock_guard lock(mutex_);
    if (jobs_.empty() || failure_) return;
    job = jobs_.front();
    jobs_.pop_front();
    if (job.bytes == 0) ++passed_marks_;
    has_passed_last_mark_ = job.is_last;
  }
  if (job.bytes > 0) {
    auto failure = run(job);
    if (!failure) return;
    std::lock_guard lock(mutex_);
    failure_ = std::move(failure);
  }
  wake_();
}

void RouteNeeds::add(const RouteNeeds& other) {
  device_buffer = device_buffer || other.device_buffer;
  host_buffer = host_buffer || other.host_buffer;
  host_copies = host_copies || other.host_copies;
  has_host_end = has_host_end || other.has_host_end;
  comparison = comparison || other.comparison;
}

RouteNeeds needs_of(Reach src, Reach dst) {
  if (src == Reach::kEngine || dst == Reach::kEngine) return {};
  if (is_on_device(src) && is_on_device(dst)) return {};
  if (!is_on_device(src) && !is_on_device(dst)) return {false, false, true, true};
  const Reach device = is_on_device(src) ? src : dst;
  const Reach host = is_on_device(src) ? dst : src;
  const bool is_pinned = host == Reach::kPinned;
  return {device == Reach::kImported, !is_pinned, !is_pinned, true};
}

// Both ends come to page-locked memory.
RouteNeeds needs_of_comparison(Reach src, Reach dst) {
  RouteNeeds needs;
  needs.device_buffer = src == Reach::kImported || dst == Reach::kImported;
  needs.host_copies = true;
  needs.comparison = true;
  return needs;
}

std::shared_ptr<void> StagingBudget::take(size_t bytes) {
  const size_t before = taken_->fetch_add(bytes);
  std::shared_ptr<void> share(nullptr, [taken = taken_, bytes](void*) { *taken -= bytes; });
  if (before + bytes > limit_bytes_)
    refuse(Message::staging_limit_is_reached, {{"value", bytes}, {"taken", before}, {"limit", limit_bytes_}});
  return share;
}

void Staging::prepare(const RouteNeeds& needs, int device_index, StagingBudget& budget) {
  if (needs.device_buffer && device.address == nullptr) {
    auto share = budget.take(bytes);
    device = mapped::allocate(device_index, bytes);
    device_share = std::move(share);
  }
  if (needs.host_buffer && host == nullptr) {
    auto share = budget.take(bytes);
    host = std::make_unique<acl::PinnedBuffer>(bytes);
    host_share = std::move(share);
  }
  if (needs.comparison && compared == nullptr) {
    auto share = budget.take(2 * kComparedBytes);
    compared = std::make_unique<acl::PinnedBuffer>(2 * kComparedBytes);
    compared_share = std::move(share);
  }
}

std::unique_ptr<Staging> Staging::take_buffers() {
  auto taken = std::make_unique<Staging>(bytes);
  taken->device = std::exchange(device, {});
  taken->host = std::move(host);
  taken->device_share = std::move(device_share);
  taken->host_share = std::move(host_share);
  taken->compared = std::move(compared);
  taken->compared_share = std::move(compared_share);
  return taken;
}

void Route::begin(const Place& dst, const Place& src, size_t bytes) {
  const RouteNeeds needs = needs_of(src.reach, dst.reach);
  const Place device{needs.device_buffer ? staging_->device.address : nullptr, Reach::kDevice};
  const Place host{needs.host_buffer ? staging_->host->as<char>() : nullptr, Reach::kPinned};
  const bool to_host = is_on_device(src.reach);
  last_stop_ = 0;
  stops_[0] = src;
  if (to_host && needs.device_buffer) stops_[++last_stop_] = device;
  if (needs.host_buffer) stops_[++last_stop_] = host;
  if (!to_host && needs.device_buffer) stops_[++last_stop_] = device;
  stops_[++last_stop_] = dst;
  stop_ = 0;
  done_ = 0;
  bytes_ = bytes;
  piece_ = last_stop_ > 1 ? staging_->bytes : (needs.host_copies ? kHostPieceBytes : bytes);
}

Place Route::at(size_t stop) const {
  Place place = stops_[stop];
  if (stop == 0 || stop == last_stop_) place.address += done_;
  return place;
}

bool Route::next(Step* step) {
  if (done_ == bytes_) return false;
  const Place src = at(stop_);
  const Place dst = at(stop_ + 1);
  const size_t bytes = std::min(piece_, bytes_ - done_);
  const Step::Kind kind = kind_of(dst.reach, src.reach);
  *step = kind == Step::kCall ? copies_->step(dst, src, bytes) : Step{kind, dst.address, src.address, bytes};
  if (++stop_ == last_stop_) {
    stop_ = 0;
    done_ += bytes;
  }
  return true;
}

}  // namespace datadist
