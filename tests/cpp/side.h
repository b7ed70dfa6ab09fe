// An instance with one cache of blocks, driven from the host without torch.
#pragma once

#include <unistd.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "acl/check.h"
#include "acl/queue.h"
#include "check.h"
#include "error.h"
#include "link/binding.h"
#include "link/instance.h"
#include "link/process.h"
#include "link/ticket.h"
#include "transport/mapped/mapped.h"

namespace datadist {

constexpr int kSideLayers = 2;
constexpr int kSideTensors = 2 * kSideLayers;
constexpr int64_t kSideBlocks = 24;
constexpr size_t kSideBlockBytes = 1024;

// What one end has to tell the other. Plain bytes, so that it can be sent as it is.
struct Introduction {
  int64_t link = 0;
  int pid = 0;
  int device = 0;
  int64_t start_time = 0;
  struct Segment {
    char handle[80] = {};
    int64_t offset = 0;
    uint64_t address = 0;
  } page, tensors[kSideTensors];
};

// A stream as torch has them, and a status on the device; what the layer ops queue there.
class Forward {
 public:
  explicit Forward(int device) : status_(mapped::allocate(device, sizeof(int32_t))) {
    DATADIST_ACL(acl::set_device(device));
    DATADIST_ACL(aclrtCreateStream(&stream_));
    DATADIST_ACL(aclrtMemset(status_.address, sizeof(int32_t), 0, sizeof(int32_t)));
  }
  ~Forward() {
    aclrtSynchronizeStream(stream_);
    aclrtDestroyStream(stream_);
  }
  Forward(const Forward&) = delete;
  Forward& operator=(const Forward&) = delete;

  OpStream stream() const { return {stream_, false}; }

  void queue(const OpSteps& steps) { steps.queue(status_.address, stream_); }

  int64_t status() {
    DATADIST_ACL(acl::synchronize(stream_, 60'000));
    int32_t found = -1;
    DATADIST_ACL(aclrtMemcpy(&found, sizeof found, status_.address, sizeof found, ACL_MEMCPY_DEVICE_TO_HOST));
    return found;
  }

 private:
  const DeviceMemory status_;
  aclrtStream stream_ = nullptr;
};

class Side {
 public:
  Side(int64_t cluster_id, int device)
      : instance_(device, cluster_id, options()), device_(device), cluster_id_(cluster_id) {
    std::vector<Place> places;
    std::vector<std::shared_ptr<void>> storage;
    for (int t = 0; t < kSideTensors; ++t) {
      DeviceMemory memory = mapped::allocate(device, kSideBlocks * kSideBlockBytes);
      tensors_.push_back(memory.address);
      places.push_back({memory.address, Reach::kDevice});
      storage.push_back(memory.owner);
    }
    const std::vector<int64_t> strides(kSideTensors, kSideBlockBytes);
    cache_ = instance_.caches().add({kSideBlocks, true, strides}, places,
                                    std::vector<uintptr_t>(kSideTensors, 0), std::move(storage));
    for (int64_t block = 0; block < kSideBlocks; ++block) fill(block, 0);
  }

  Instance& instance() { return instance_; }

  // The bytes of a block follow from a seed.
  void fill(int64_t block, uint64_t seed) {
    DATADIST_ACL(acl::set_device(device_));
    for (int t = 0; t < kSideTensors; ++t) {
      const auto bytes = content(seed, t);
      DATADIST_ACL(
          aclrtMemcpy(at(t, block), bytes.size(), bytes.data(), bytes.size(), ACL_MEMCPY_HOST_TO_DEVICE));
    }
  }

  bool holds(int64_t block, uint64_t seed) {
    DATADIST_ACL(acl::set_device(device_));
    for (int t = 0; t < kSideTensors; ++t) {
      std::string found(kSideBlockBytes, '\0');
      DATADIST_ACL(
          aclrtMemcpy(found.data(), found.size(), at(t, block), found.size(), ACL_MEMCPY_DEVICE_TO_HOST));
      if (found != content(seed, t)) return false;
    }
    return true;
  }

  Introduction introduce(const Peer& peer) {
    const auto link = instance_.open_link(peer);
    Introduction mine;
    mine.link = link->handle();
    mine.pid = getpid();
    mine.device = device_;
    mine.start_time = start_time_of(getpid());
    mine.page = segment(mapped::export_addresses(device_, {link->page().address}).front());
    const auto exported = mapped::export_addresses(device_, tensors_);
    for (int t = 0; t < kSideTensors; ++t) mine.tensors[t] = segment(exported[t]);
    return mine;
  }

  void meet(int64_t link_handle, const Introduction& theirs) {
    const auto link = instance_.link(link_handle, "meet");
    auto cache = std::make_shared<RemoteCache>();
    cache->id = 1;
    cache->model_id = 0;
    cache->geometry = {kSideBlocks, true, std::vector<int64_t>(kSideTensors, kSideBlockBytes)};
    for (const auto& tensor : theirs.tensors) cache->exports.push_back(exported(tensor));
    link->remote_caches().add(std::move(cache));
    link->connect(theirs.link, exported(theirs.page));
  }

  // Each ends with (code, detail).
  std::pair<int64_t, std::string> move(Direction direction, int64_t link_handle, std::vector<int64_t> src,
                                       std::vector<int64_t> dst, int64_t ticket = 0) {
    const auto transfer = begin(direction, link_handle, src, dst, ticket, true);
    transfer->start_from_host(0);
    return transfer->wait();
  }

  TransferPlan plan(int64_t link_handle, const std::function<void(TransferRequest&)>& change) {
    static const std::vector<int64_t> one{0};
    TransferRequest request = request_of(Direction::kPush, one, one);
    change(request);
    return plan_transfer(*require_link(link_handle, "plan"), request);
  }

  // What an op does before it queues anything.
  std::shared_ptr<Transfer> begin(Direction direction, int64_t link_handle, const std::vector<int64_t>& src,
                                  const std::vector<int64_t>& dst, int64_t ticket, bool notify_host) {
    const auto link = require_link(link_handle, "begin");
    TransferRequest request = request_of(direction, src, dst);
    request.ticket = ticket;
    TransferPlan plan = plan_transfer(*link, request);
    const auto published = plan.ticket;
    auto transfer = make_kept<Transfer>(link, std::move(plan), std::nullopt);
    link->engine().watch(transfer);
    if (published != nullptr) published->claim(transfer->pull_round(), 1, 0, kSideTensors, "begin");
    transfer->submit(notify_host, "begin");
    return transfer;
  }

  std::shared_ptr<Transfer> publish(int64_t link_handle) {
    const auto link = require_link(link_handle, "publish");
    return begin_with_slot(link, plan_publication(*link, cache_, 0, -1, 20'000), true);
  }

  std::shared_ptr<Transfer> prepare(int64_t link_handle, std::vector<int64_t> src, std::vector<int64_t> dst) {
    const auto link = require_link(link_handle, "prepare");
    return begin_with_slot(link, plan_transfer(*link, request_of(Direction::kPush, src, dst)), false);
  }

  std::shared_ptr<Binding> make_binding() {
    std::vector<int64_t> layers;
    for (int layer = 0; layer < kSideLayers; ++layer) layers.push_back(layer);
    auto engine = Engine::of(device_);
    auto binding = std::make_shared<Binding>(engine, layers, std::chrono::seconds(20));
    engine->watch(binding);
    return binding;
  }

  // What a forward does: binds, releases or waits for each layer on a stream; the status that it sees.
  int64_t send_layers(Binding& binding, const std::shared_ptr<Transfer>& task) {
    Forward forward(device_);
    binding.bind({task}, {}, {}, std::chrono::seconds(20));
    for (int layer = 0; layer < kSideLayers; ++layer)
      forward.queue(binding.push_layer(layer, forward.stream()));
    forward.queue(binding.finish(forward.stream()));
    return forward.status();
  }
  int64_t wait_layers(Binding& binding, int64_t ticket) {
    Forward forward(device_);
    binding.bind({}, {ticket}, {}, std::chrono::seconds(20));
    for (int layer = 0; layer < kSideLayers; ++layer)
      forward.queue(binding.wait_layer(layer, forward.stream()));
    return forward.status();
  }

 private:
  static LinkOptions options() {
    LinkOptions options;
    options.keep_alive = std::chrono::seconds(20);  // a sanitizer and a busy machine slow a watchdog down
    options.transfer_timeout = std::chrono::seconds(20);
    return options;
  }

  static std::string content(uint64_t seed, int tensor) {
    std::mt19937_64 chance(seed * kSideTensors + static_cast<uint64_t>(tensor));
    std::string bytes(kSideBlockBytes, '\0');
    for (size_t i = 0; i < bytes.size(); i += 8) {
      const uint64_t word = chance();
      std::memcpy(bytes.data() + i, &word, 8);
    }
    return bytes;
  }

  static Introduction::Segment segment(const Exported& memory) {
    Introduction::Segment found;
    CHECK(memory.handle.size() < sizeof found.handle);
    std::memcpy(found.handle, memory.handle.data(), memory.handle.size());
    found.offset = memory.offset;
    found.address = memory.address;
    return found;
  }
  static Exported exported(const Introduction::Segment& segment) {
    return {segment.handle, segment.offset, segment.address, MemoryKind::kDevice};
  }

  TransferRequest request_of(Direction direction, const std::vector<int64_t>& src,
                             const std::vector<int64_t>& dst) const {
    TransferRequest request;
    request.direction = direction;
    request.asked = direction == Direction::kPush ? "push" : "pull";
    request.cache = tensors_;
    request.dimension_0 = kSideBlocks;
    request.src_blocks = src.data();
    request.src_length = src.size();
    request.dst_blocks = dst.data();
    request.dst_length = dst.size();
    return request;
  }

  static std::shared_ptr<Transfer> begin_with_slot(const std::shared_ptr<Link>& link, TransferPlan plan,
                                                   bool starts) {
    const SlotUse slot = link->take_slot("begin");
    auto transfer = make_kept<Transfer>(link, std::move(plan), slot);
    link->sends(slot, transfer);
    link->engine().watch(transfer);
    if (starts) {
      transfer->submit(false, "publish");
      transfer->start_from_host(0);
    }
    return transfer;
  }

  char* at(int tensor, int64_t block) const {
    return tensors_[static_cast<size_t>(tensor)] + block * static_cast<int64_t>(kSideBlockBytes);
  }

  Instance instance_;
  const int device_;
  const int64_t cluster_id_;
  int64_t cache_ = 0;
  std::vector<char*> tensors_;
};

}  // namespace datadist
