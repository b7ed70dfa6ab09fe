// The streams of a link, and the buffers that belong to them.
#include "acl/check.h"
#include "error.h"
#include "link/engine.h"
#include "link/link.h"
#include "messages/messages.h"
#include "transport/mapped/mapped.h"

namespace datadist {

void Link::stop_streams() {
  feeder_->stop();
  if (Feeder* const scatters = scatters_.load()) scatters->stop();
}

void Link::free_all_staging() {
  std::vector<std::unique_ptr<Staging>> lent;
  {
    std::lock_guard lock(mutex_);
    lent.swap(lent_staging_);
    free_staging_.clear();
  }
  lent.push_back(staging_.take_buffers());
  const bool is_in_use = transfers_ > 0;  // without a watchdog to tell when it ends
  for (auto& staging : lent) {
    if (is_in_use) {
      [[maybe_unused]] auto* const kept = staging.release();
    } else if (staging->host != nullptr || staging->compared != nullptr) {
      DATADIST_ACL(acl::set_device(engine_->device()));
      break;
    }
  }
}

Feeder& Link::scatters() {
  std::lock_guard lock(scatter_mutex_);
  if (scatter_feeder_ == nullptr) {
    scatter_feeder_ =
        std::make_unique<Feeder>(engine_->device(), acl::OnFailure::kStop, &engine_->words(),
                                 transport_.get(), &engine_->streams(), Feeder::Idle{options_.idle, {}});
    scatters_ = scatter_feeder_.get();
  }
  return *scatter_feeder_;
}

std::shared_ptr<Lane> Link::try_take_scatter_lane() {
  return scatters().take_lane(SIZE_MAX, Feeder::Budget::kBound);
}

std::shared_ptr<Lane> Link::take_scatter_lane() {
  require_alive("expect");
  auto lane = try_take_scatter_lane();
  if (lane == nullptr) require_alive("expect");
  if (lane == nullptr)
    refuse(Message::no_stream_to_scatter,
           {{"value", engine_->streams().limit()}, {"device", engine_->device()}});
  return lane;
}

void Link::submit_scatter(const std::shared_ptr<Lane>& lane, std::unique_ptr<Program> program) {
  scatters_.load()->submit(lane, std::move(program));
}

void Link::drop_scatter_lane(const std::shared_ptr<Lane>& lane) { scatters_.load()->drop_lane(lane); }

void Link::give_back_scatter_lane(std::shared_ptr<Lane> lane) {
  scatters_.load()->give_back_lane(std::move(lane));
}

void Link::scatter_failed(const std::string& what) {
  die(kFailed, join("what landed in its staging could not be scattered: ", what));
}

bool Link::streams_have_stopped() const {
  const Feeder* const scatters = scatters_.load();
  return feeder_->has_stopped() && (scatters == nullptr || scatters->has_stopped());
}

std::shared_ptr<Lane> Link::take_staging_lane() {
  std::lock_guard lock(mutex_);
  if (main_lane_ == nullptr || main_lane_->is_dropped()) {
    main_lane_ = feeder_->take_lane(options_.streams + 1, Feeder::Budget::kExempt, Feeder::Words::kReserved);
  }
  return main_lane_;
}

std::shared_ptr<Lane> Link::take_own_lane() {
  engine_->words().fill_reserve();
  take_staging_lane();  // there is one of it, whoever comes first
  return feeder_->take_lane(options_.streams + 1, Feeder::Budget::kBound);
}

std::shared_ptr<Lane> Link::take_any_lane() {
  auto main = take_staging_lane();
  auto lane = feeder_->take_lane(options_.streams + 1, Feeder::Budget::kBound, Feeder::Words::kReserved);
  return lane != nullptr ? lane : main;
}

void Link::free_idle_staging() {
  acl::ContextScope restore;                   // what frees through torch's allocator changes the thread's
  std::vector<std::unique_ptr<Staging>> idle;  // freed without the lock: the allocator may wait for streams
  idle.push_back(staging_.take_buffers());
  std::lock_guard lock(mutex_);
  for (Staging* staging : free_staging_) idle.push_back(staging->take_buffers());
}

Staging* Link::borrow_staging() {
  std::lock_guard lock(mutex_);
  if (free_staging_.empty()) {
    lent_staging_.push_back(std::make_unique<Staging>(kLayerStagingBytes));
    return lent_staging_.back().get();
  }
  Staging* const staging = free_staging_.back();
  free_staging_.pop_back();
  return staging;
}

void Link::give_back_staging(Staging* staging) {
  std::lock_guard lock(mutex_);
  free_staging_.push_back(staging);
}

bool Link::is_shared(const std::shared_ptr<Lane>& lane) const {
  std::lock_guard lock(mutex_);
  return lane == main_lane_;
}

void Link::give_back_lane(std::shared_ptr<Lane> lane) {
  std::lock_guard lock(mutex_);
  if (lane != main_lane_) feeder_->give_back_lane(std::move(lane));
}

}  // namespace datadist
