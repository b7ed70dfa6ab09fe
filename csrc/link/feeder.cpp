#include "link/feeder.h"

#include <algorithm>
#include <cstdio>
#include <optional>
#include <utility>

#include "acl/check.h"
#include "acl/kernels.h"
#include "acl/queue.h"
#include "acl/ranges.h"
#include "error.h"
#include "transport/mapped/mapped.h"

namespace datadist {
namespace {

constexpr uint64_t kQueueLimit = 1500;                // entries; a stream's queue holds 2048
constexpr uint64_t kStepsPerMark = 256;               // a progress write behind that many
constexpr uint64_t kEntriesOfAWait = 4;               // a value wait is a small loop on the device
constexpr uint64_t kEntriesOfAKernel = 4;             // it may be made of several
constexpr auto kEndWithin = std::chrono::seconds(1);  // then a transport is cut off from the peer
// Between two looks at every lane: what wakes in between are programs, which may come every few microseconds.
constexpr auto kLookAtAll = std::chrono::microseconds(500);

uint64_t entries_of(const Step& step) {
  if (step.kind == Step::kWait || step.kind == Step::kSettle) return kEntriesOfAWait;
  if (step.kind == Step::kGather || step.kind == Step::kScatter) return kEntriesOfAKernel;
  return step.kind == Step::kRemoteWrite ? 2 : 1;  // two where words are copied
}

}  // namespace

Feeder::Feeder(int device, acl::OnFailure mode, WordPool* words, Transport* transport, StreamBudget* budget,
               Idle idle)
    : device_(device),
      mode_(mode),
      words_(words),
      transport_(transport),
      budget_(budget),
      idle_after_(std::move(idle)),
      thread_([this] { run(); }) {}

Feeder::~Feeder() { stop(); }

std::shared_ptr<Lane> Feeder::take_lane(size_t max_lanes, Budget budget, Words from) {
  const auto take_share = [&] {
    return budget == Budget::kExempt ? budget_->take_anyway() : budget_->take();
  };
  std::shared_ptr<void> share;
  {
    std::lock_guard lock(mutex_);
    while (!idle_.empty()) {
      auto lane = idle_.back();
      if (!lane->is_dropped() && !lane->must_drop_) {
        if (lane->share_ == nullptr) lane->share_ = take_share();
        if (lane->share_ == nullptr) return nullptr;
        idle_.pop_back();
        return lane;
      }
      idle_.pop_back();
    }
    if (lanes_.size() >= max_lanes || must_stop_) return nullptr;
    share = take_share();
    if (share == nullptr) return nullptr;
  }
  // May allocate, so not under the lock.
  const auto words = from == Words::kAny ? words_->take(2) : words_->take_reserved(2);
  if (words.empty()) return nullptr;
  auto lane = std::make_shared<Lane>(words[0], words[1]);
  std::lock_guard lock(mutex_);
  if (lanes_.size() >= max_lanes || must_stop_) {
    for (const Word& word : words) words_->give_back(word);
    return nullptr;
  }
  lane->share_ = std::move(share);
  lanes_.push_back(lane);
  return lane;
}

void Feeder::give_back_lane(std::shared_ptr<Lane> lane) {
  std::lock_guard lock(mutex_);
  if (!lane->is_dropped() && !lane->must_drop_) idle_.push_back(std::move(lane));
}

void Feeder::submit(const std::shared_ptr<Lane>& lane, std::unique_ptr<Program> program) {
  leave(lane, std::move(program));
  wake();
}

void Feeder::leave(const std::shared_ptr<Lane>& lane, std::unique_ptr<Program> program) {
  {
    std::lock_guard lock(mutex_);
    if (!must_stop_ && !lane->is_dropped() && !lane->must_drop_) {
      // Whoever has the lane may use it, though it gave its stream back while it had no work.
      if (lane->share_ == nullptr) lane->share_ = budget_->take_anyway();
      lane->queue_.push_back(std::move(program));
    }
  }
  if (program != nullptr) program->ended(0, kNotYetLink, "the stream that was to carry it is gone");
}

// Behind its last look the thread takes nobody along: then it ends here.
void Feeder::leave(const std::shared_ptr<Boarding>& boarding) {
  words_->fill_reserve();
  boarding_.push(boarding);
  if (has_left_) let_board();
}

void Feeder::let_board() {
  boarding_.take([](const std::shared_ptr<Boarding>& boarding) { boarding->board(); });
}

void Feeder::wake() {
  {
    std::lock_guard lock(mutex_);
    must_look_ = true;
  }
  wake_.notify_one();
}

void Feeder::drop_lane(const std::shared_ptr<Lane>& lane) {
  {
    std::lock_guard lock(mutex_);
    lane->must_drop_ = true;
    must_look_ = true;
  }
  wake_.notify_one();
}

void Feeder::tick() {
  bool has_work = !boarding_.empty();
  {
    std::lock_guard lock(mutex_);
    for (const auto& lane : lanes_) {
      if (lane->is_dropped()) continue;
      lane->seen_mark_.store(lane->progress_.seen(), std::memory_order_release);
      has_work = has_work || lane->in_queue_ > 0 || !lane->queue_.empty() || lane->must_drop_;
    }
    const auto now = Clock::now();
    if (has_work) worked_at_ = now;
    // An idle link holds no stream: a device has 1984 of them.
    may_release_ = now - worked_at_ > idle_after_.after;
    if (has_work || (may_release_ && holds_streams_.exchange(false))) must_look_ = true;
    has_work = must_look_;
  }
  if (has_work) wake_.notify_one();
}

bool Feeder::is_idle() const {
  std::lock_guard lock(mutex_);
  return std::all_of(lanes_.begin(), lanes_.end(), [](const auto& lane) {
    return lane->is_dropped() || (lane->in_queue_ == 0 && lane->queue_.empty());
  });
}

void Feeder::request_stop() {
  {
    std::lock_guard lock(mutex_);
    must_stop_ = true;
  }
  wake_.notify_one();
}

void Feeder::stop() {
  request_stop();
  std::lock_guard lock(join_mutex_);
  if (thread_.joinable()) thread_.join();
}

void Feeder::run() {
  std::optional<acl::ThreadDevice> device;
  try {
    device.emplace(device_);
    context_ = std::make_unique<acl::Context>(device_);
    context_->make_current();
  } catch (const Error&) {
    failure_.store(507000, std::memory_order_release);  // every program is refused below
  }
  std::vector<std::shared_ptr<Lane>> lanes;
  Clock::time_point looked_at_all;
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return must_stop_ || must_look_; });
    const bool stopping = must_stop_;
    must_look_ = false;
    if (!boarding_.empty()) {
      lock.unlock();
      let_board();
      lock.lock();
    }
    // Who submits needs the lock, too: it is not taken once more for each lane that has nothing to do.
    const auto now = Clock::now();
    const bool looks_at_all = stopping || may_release_ || now - looked_at_all >= kLookAtAll;
    if (looks_at_all) looked_at_all = now;
    for (const auto& lane : lanes_) {
      if (looks_at_all || !lane->queue_.empty() || lane->must_drop_) lanes.push_back(lane);
    }
    // Feeding works without the lock; only this thread touches a lane's queue head and stream.
    lock.unlock();
    bool has_more = false;
    bool has_dropped = false;
    bool is_idle = may_release_ && looks_at_all;
    for (const auto& lane : lanes) {
      if (lane->is_dropped()) continue;
      if (stopping || lane->must_drop_) {
        give_up(*lane, kNotYetLink, "its stream was given up");
        end_if_drained(*lane, stopping);
      } else {
        has_more = feed(*lane) || has_more;
        is_idle = is_idle && lane->stream_ == nullptr;
      }
      has_dropped = has_dropped || lane->is_dropped();
    }
    lanes.clear();
    if (is_idle && !stopping && idle_after_.then) idle_after_.then();
    lock.lock();
    if (has_dropped) std::erase_if(lanes_, [](const auto& lane) { return lane->is_dropped(); });
    must_look_ = must_look_ || has_more;
    if (stopping) break;
  }
  lock.unlock();
  context_.reset();
  device.reset();
  has_left_ = true;
  let_board();
  has_stopped_.store(true, std::memory_order_release);
}

aclError Feeder::look_for_failure(Lane& lane) {
  const aclError code = lane.stream_->query();
  if (code != 0 && mode_ == acl::OnFailure::kStop) failure_.store(code, std::memory_order_release);
  return code;
}

// Submits up to one mark's worth of the lane's first program. True when it could go on at once.
bool Feeder::feed(Lane& lane) {
  const uint64_t seen = lane.seen_mark_.load(std::memory_order_acquire);
  while (!lane.unseen_.empty() && lane.unseen_.front().first <= seen) {
    lane.in_queue_ -= lane.unseen_.front().second;
    lane.unseen_.pop_front();
  }
  if (lane.stream_ != nullptr && lane.in_queue_ > 0) {
    if (const aclError code = look_for_failure(lane); code != 0) {
      give_up(lane, acl::status_code(code), acl::describe("a task of the link's stream", code));
      return false;
    }
  }
  Program* program = nullptr;
  {
    std::lock_guard lock(mutex_);
    if (!lane.queue_.empty()) program = lane.queue_.front().get();
  }
  if (program == nullptr && lane.in_queue_ == 0 && may_release_ &&
      (lane.stream_ == nullptr || transport_ == nullptr || transport_->drop(lane.stream_->get())))
    release_stream(lane);
  if (program == nullptr || lane.in_queue_ + kStepsPerMark * 2 > kQueueLimit) return false;

  std::string what;
  int64_t status = kSuccess;
  bool at_end = false;
  try {
    require(failure() == 0, kFailed, "the link's context stopped after a failed task");
    if (lane.stream_ == nullptr) lane.stream_ = std::make_unique<acl::Stream>(*context_, mode_);
    holds_streams_ = true;  // also of one that a tick has just asked to be given back: it has work again
    if (!lane.head_is_prepared_) program->prepare();
    lane.head_is_prepared_ = true;
    Step step;
    aclError code = 0;
    while (code == 0 && lane.steps_since_mark_ < kStepsPerMark) {
      if (!next_step(lane, *program, &step)) {
        at_end = true;
        break;
      }
      if (!submit_step(lane, step, &what, &code)) break;
    }
    if (code == 0 && transport_ != nullptr) code = transport_->flush(lane.stream_->get());
    if (code == 0) code = mark(lane);
    if (code != 0 && what.empty()) what = acl::describe("aclrtValueWrite", code);
    if (code != 0) status = acl::status_code(code);
  } catch (const Error& error) {
    status = error.code();
    what = error.what();
  } catch (const std::exception& error) {
    status = kFailed;
    what = error.what();
  }
  if (status == kSuccess && !at_end) return true;

  std::unique_ptr<Program> head;
  bool has_more = false;
  {
    std::lock_guard lock(mutex_);
    head = std::move(lane.queue_.front());
    lane.queue_.pop_front();
    has_more = !lane.queue_.empty();
    lane.head_is_prepared_ = false;
    lane.row_ = lane.rows_.height;
  }
  if (status != kSuccess && lane.stream_ != nullptr) {
    // Refused because an earlier task stopped the context: the link is told first, as the program is not the
    // cause.
    look_for_failure(lane);
    // What a refused program left on the stream must be known to have drained before its words serve anybody
    // else.
    if (lane.steps_since_mark_ > 0 && (settle(lane) != 0 || mark(lane) != 0)) give_up(lane, status, what);
  }
  head->ended(lane.next_mark_ - 1, status, what);
  return has_more && !lane.is_dropped();
}

void Feeder::release_stream(Lane& lane) {
  lane.stream_.reset();
  std::lock_guard lock(mutex_);
  if (lane.queue_.empty()) lane.share_.reset();
}

bool Feeder::next_step(Lane& lane, Program& program, Step* step) {
  const Step& rows = lane.rows_;
  if (lane.row_ == rows.height) return program.next(step);
  *step = {Step::kCopy, static_cast<char*>(rows.dst) + lane.row_ * rows.dst_pitch,
           static_cast<const char*>(rows.src) + lane.row_ * rows.src_pitch, rows.value};
  ++lane.row_;
  return true;
}

// False where the runtime takes no such copy: then its rows are copied one by one.
bool Feeder::copy_rows(Lane& lane, const Step& step, aclError* code) {
  if (takes_rows_) {
    auto* const src = static_cast<char*>(const_cast<void*>(step.src));
    *code = transport_->copy_rows(
        {static_cast<char*>(step.dst), src, step.value, step.height, step.dst_pitch, step.src_pitch},
        lane.stream_->get());
    if (*code != 107000 && *code != 207000) return true;
    takes_rows_ = false;
    static std::atomic<bool> told{false};
    if (!told.exchange(true)) {
      std::fprintf(stderr, "torch_llm_datadist: rows are copied one by one from now on, since %s\n",
                   acl::describe("aclrtMemcpy2dAsync", *code).c_str());
    }
  }
  *code = 0;
  lane.rows_ = step;
  lane.row_ = 0;
  return false;
}

aclError Feeder::launch(Lane& lane, const Step& step) {
  const bool gathers = step.kind == Step::kGather;
  auto* const src = static_cast<char*>(const_cast<void*>(step.src));
  auto* const dst = static_cast<char*>(step.dst);
  acl::RowKernel kernel;
  const aclError code =
      kernel.prepare(gathers ? acl::RowKernel::Kind::kGather : acl::RowKernel::Kind::kScatter,
                     {gathers ? src : dst, step.rows, step.value, step.ids, static_cast<int64_t>(step.height),
                      gathers ? dst : src});
  if (code != 0) return code;
  // What is queued may still use the smaller one.
  if (kernel.workspace_bytes() > lane.workspace_bytes_) {
    lane.workspaces_.push_back(mapped::allocate(device_, kernel.workspace_bytes()));
    lane.workspace_bytes_ = kernel.workspace_bytes();
  }
  return kernel.launch(lane.workspaces_.empty() ? nullptr : lane.workspaces_.back().address,
                       lane.stream_->get());
}

bool Feeder::submit_step(Lane& lane, const Step& step, std::string* what, aclError* code) {
  const aclrtStream stream = lane.stream_->get();
  const char* call = "";
  switch (step.kind) {
    case Step::kWait:
      call = "aclrtValueWait";
      // What stands in front of the wait leaves before it ends.
      if (transport_ != nullptr) *code = transport_->flush(stream);
      if (*code == 0) *code = acl::queue_wait(step.dst, step.value, stream);
      break;
    case Step::kWrite:
      call = "aclrtValueWrite";
      *code = acl::queue_write(step.dst, step.value, stream);
      break;
    case Step::kCopy:
      call = "aclrtMemcpyAsync";
      *code = transport_->copy(step.dst, step.src, step.value, stream);
      break;
    case Step::kCopyRows:
      call = "aclrtMemcpy2dAsync";
      if (!copy_rows(lane, step, code)) return true;
      break;
    case Step::kToHost:
      call = "aclrtMemcpyAsync";
      *code = acl::queue_to_host(step.dst, step.src, step.value, stream);
      break;
    case Step::kToDevice:
      call = "aclrtMemcpyAsync";
      *code = acl::queue_to_device(step.dst, step.src, step.value, stream);
      break;
    case Step::kRemoteWrite:
      call = "aclrtValueWrite";
      *code = transport_->write_word(step.dst, step.value, lane.outgoing_.address, stream);
      break;
    case Step::kGather:
      call = "aclnnIndexSelect";
      *code = launch(lane, step);
      break;
    case Step::kScatter:
      call = "aclnnInplaceIndexCopy";
      *code = launch(lane, step);
      break;
    case Step::kSettle:
      call = "aclrtValueWait";
      *code = transport_->settle(stream);
      break;
    case Step::kCall:
      call = "aclrtLaunchHostFunc";
      *code =
          acl::queue_call(reinterpret_cast<void (*)(void*)>(const_cast<void*>(step.src)), step.dst, stream);
      break;
    case Step::kRangeStart:
      lane.range_ = acl::start_range(static_cast<const char*>(step.src), stream);
      break;
    case Step::kRangeEnd:
      acl::end_range(std::exchange(lane.range_, 0));
      break;
  }
  if (*code != 0) {
    *what = acl::describe(call, *code);
    return false;
  }
  lane.in_queue_ += entries_of(step);
  ++lane.steps_since_mark_;
  return true;
}

aclError Feeder::settle(Lane& lane) {
  return transport_ == nullptr ? 0 : transport_->settle(lane.stream_->get());
}

aclError Feeder::mark(Lane& lane) {
  const aclError code = acl::queue_write(lane.progress_.address, lane.next_mark_, lane.stream_->get());
  if (code != 0) return code;
  ++lane.in_queue_;
  uint64_t counted = 0;
  for (const auto& [_, entries] : lane.unseen_) counted += entries;
  lane.unseen_.emplace_back(lane.next_mark_++, lane.in_queue_ - counted);
  lane.steps_since_mark_ = 0;
  return 0;
}

// Ends the stream. What a transport took from it may still be under way.
void Feeder::give_up(Lane& lane, int64_t code, const std::string& why) {
  acl::end_range(std::exchange(lane.range_, 0));
  if (lane.stream_ != nullptr) lane.ended_stream_ = lane.stream_->get();
  lane.stream_.reset();
  lane.workspaces_.clear();
  std::deque<std::unique_ptr<Program>> rest;
  {
    std::lock_guard lock(mutex_);
    must_look_ = must_look_ || !lane.must_drop_;
    lane.must_drop_ = true;
    rest.swap(lane.queue_);
    lane.share_.reset();
    lane.in_queue_ = 0;
    lane.unseen_.clear();
  }
  for (const auto& program : rest) program->ended(0, code, why);
}

void Feeder::end_if_drained(Lane& lane, bool must_end) {
  if (transport_ != nullptr && lane.ended_stream_ != nullptr) {
    const auto deadline = Clock::now() + kEndWithin;
    while (!transport_->drop(lane.ended_stream_)) {
      if (!must_end) return;  // the next tick asks again
      if (Clock::now() >= deadline) transport_->sever();
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  }
  lane.is_dropped_.store(true, std::memory_order_release);
  words_->give_back(lane.progress_);
  words_->give_back(lane.outgoing_);
}

}  // namespace datadist
