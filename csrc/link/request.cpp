// Checks a request against both ends and plans it. Nothing is queued here.
#include <string_view>

#include "error.h"
#include "link/instance.h"
#include "link/ticket.h"
#include "messages/messages.h"

namespace datadist {
namespace {

constexpr int64_t kLongestTimeoutMs = 1'000'000'000;

const char* kind_name(bool is_blocks) { return is_blocks ? "blocks cache" : "contiguous cache"; }

// `low` is 0 where that stands for the default.
void check_timeout(const char* asked, int64_t timeout_ms, int64_t low) {
  if (timeout_ms >= low && timeout_ms <= kLongestTimeoutMs) return;
  refuse(Message::timeout_out_of_range,
         {{"asked", asked}, {"value", timeout_ms}, {"low", low}, {"high", kLongestTimeoutMs}});
}

// The two ends of a plan, seen in the direction of the bytes.
class Ends {
 public:
  Ends(const TransferRequest& request, const TransferPlan& plan, const std::string& peer)
      : request_(request), plan_(plan), peer_(peer) {}

  void check() const {
    for (int64_t i = 0; i < tensors(); ++i) {
      switch (request_.layout) {
        case Layout::kBlocks:
          check_blocks(i);
          break;
        case Layout::kEntry:
          check_entry(i);
          break;
        case Layout::kEntryToBlocks:
          check_slices(i);
          break;
      }
    }
  }

  const Geometry& source() const { return is_push() ? local() : remote(); }
  const Geometry& destination() const { return is_push() ? remote() : local(); }

 private:
  bool is_push() const { return request_.direction == Direction::kPush; }
  const Geometry& local() const { return plan_.local->geometry; }
  const Geometry& remote() const { return plan_.remote->geometry; }
  int64_t tensors() const { return plan_.local_layers.layers * plan_.local_layers.tensors_per_layer; }
  int64_t local_tensor(int64_t i) const {
    return plan_.local_layers.first_layer * plan_.local_layers.tensors_per_layer + i;
  }
  int64_t remote_tensor(int64_t i) const {
    return plan_.remote_layers.first_layer * plan_.remote_layers.tensors_per_layer + i;
  }
  int64_t local_stride(int64_t i) const { return local().strides[local_tensor(i)]; }
  int64_t remote_stride(int64_t i) const { return remote().strides[remote_tensor(i)]; }

  void check_blocks(int64_t i) const {
    if (local_stride(i) == remote_stride(i)) return;
    refuse(Message::other_block_bytes, {{"asked", request_.asked},
                                        {"local", local_stride(i)},
                                        {"local_tensor", local_tensor(i)},
                                        {"remote", remote_stride(i)},
                                        {"remote_tensor", remote_tensor(i)},
                                        {"peer", peer_}});
  }

  void check_entry(int64_t i) const {
    const int64_t bytes = request_.size_bytes > 0 ? request_.size_bytes : local_stride(i);
    if (bytes <= local_stride(i) && bytes <= remote_stride(i)) return;
    refuse(Message::entry_does_not_fit,
           {{"asked", request_.asked},
            {"what", request_.size_bytes > 0 ? "size = " : "the local entry of "},
            {"value", bytes},
            {"local", local_stride(i)},
            {"local_tensor", local_tensor(i)},
            {"remote", remote_stride(i)},
            {"remote_tensor", remote_tensor(i)},
            {"peer", peer_}});
  }

  void check_slices(int64_t i) const {
    const int64_t entry = is_push() ? local_stride(i) : remote_stride(i);
    const int64_t block = is_push() ? remote_stride(i) : local_stride(i);
    const int64_t slices = (entry + block - 1) / block;
    if (static_cast<int64_t>(request_.dst_length) <= slices) return;
    refuse(Message::too_many_slices, {{"asked", request_.asked},
                                      {"value", request_.dst_length},
                                      {"entry", entry},
                                      {"count", slices},
                                      {"block", block},
                                      {"tensor", is_push() ? local_tensor(i) : remote_tensor(i)}});
  }

  const TransferRequest& request_;
  const TransferPlan& plan_;
  const std::string& peer_;
};

void check_entry_index(const TransferRequest& request, const char* name, int64_t entry,
                       const Geometry& cache) {
  if (entry >= 0 && entry < cache.num_blocks) return;
  refuse(Message::entry_outside, {{"asked", request.asked},
                                  {"name", name},
                                  {"value", entry},
                                  {"cache", "the cache"},
                                  {"count", cache.num_blocks}});
}

std::shared_ptr<RemoteCache> find_remote(Link& link, const TransferRequest& request, bool is_blocks) {
  if (!request.cache_id)
    return link.remote_caches().find_model(request.model_id, request.asked, link.peer().name);
  auto remote = link.remote_caches().find_id(*request.cache_id, request.asked, link.peer().name);
  if (remote->geometry.is_blocks != is_blocks) {
    refuse(Message::other_kind_of_cache, {{"asked", request.asked},
                                          {"cache", join("cache ", remote->id, " of ", link.peer().name)},
                                          {"found", kind_name(!is_blocks)},
                                          {"wanted", kind_name(is_blocks)}});
  }
  return remote;
}

Runs runs_of(const TransferRequest& request, const Ends& ends) {
  if (request.layout == Layout::kEntry) {
    check_entry_index(request, "the destination's batch index", request.dst_entry, ends.destination());
    return {Run{0, 0, 1}};
  }
  std::vector<int64_t> slices;
  BlockLists lists{request.src_blocks, request.src_length,       request.dst_blocks,
                   request.dst_length, ends.source().num_blocks, ends.destination().num_blocks};
  if (request.layout == Layout::kEntryToBlocks) {
    for (size_t i = 0; i < request.dst_length; ++i) slices.push_back(static_cast<int64_t>(i));
    lists.src = slices.data();
    lists.src_length = slices.size();
    lists.src_count = static_cast<int64_t>(slices.size());
  }
  const auto runs = plan_runs(lists, request.asked);
  return {runs.begin(), runs.end()};
}

RouteNeeds needs_of(const Link& link, const TransferPlan& plan, bool is_push) {
  const Reach remote = link.transport().reach_of(plan.remote->exports.front().kind);
  if (link.options().verifies && !plan.is_proven && remote == Reach::kEngine)
    refuse(Message::cannot_verify, {{"value", link.transport().name()}, {"peer", link.peer().name}});
  RouteNeeds needs;
  for (const Place& local : plan.local->tensors) {
    needs.add(is_push ? needs_of(local.reach, remote) : needs_of(remote, local.reach));
    if (plan.is_proven) {
      needs.add(needs_of_adding(local.reach));
    } else if (link.options().verifies) {
      needs.add(needs_of_comparison(local.reach, remote));
    }
  }
  return needs;
}

// Over a fenced link nothing reaches a block but by the receiver's own scatter.
void require_unfenced(const Link& link, bool may_pack, const char* asked) {
  if (link.peer().is_fenced && !may_pack)
    refuse(Message::link_is_fenced, {{"asked", asked}, {"value", link.handle()}, {"peer", link.peer().name}});
}

void require_receives(const Link& link, const TransferPlan& plan, bool is_push, const char* asked) {
  if (is_push ? plan.remote->receives : plan.local->receives) return;
  refuse(Message::cache_receives_nothing, {{"asked", asked},
                                           {"where", is_push ? link.peer().name : "this instance"},
                                           {"value", is_push ? plan.remote->id : plan.local->id}});
}

// The publication that a pull waits for. Its holder's word may still be on its way here.
std::shared_ptr<Ticket> find_publication(const Link& link, const TransferRequest& request,
                                         std::chrono::milliseconds timeout) {
  auto ticket = find_ticket(request.ticket, request.asked, Clock::now() + timeout);
  if (&ticket->link() != &link) {
    refuse(Message::ticket_of_another_peer, {{"asked", request.asked},
                                             {"value", request.ticket},
                                             {"found", ticket->link().peer().name},
                                             {"peer", link.peer().name}});
  }
  return ticket;
}

// The caches and layers of a request, which fit one another.
void find_ends(Link& link, const TransferRequest& request, TransferPlan& plan) {
  const bool is_push = request.direction == Direction::kPush;
  const bool has_entry = request.layout != Layout::kBlocks;
  const bool has_blocks = request.layout != Layout::kEntry;
  // An entry is cut into blocks at the destination, never the other way round.
  plan.local = link.caches().find(request.cache, is_push ? !has_entry : has_blocks, request.dimension_0,
                                  request.asked, request.make_copy);
  plan.remote = find_remote(link, request, is_push ? has_blocks : !has_entry);
  require_receives(link, plan, is_push, request.asked);
  const auto range = [&](const Geometry& geometry, int64_t first, const char* side) {
    return resolve_layers(geometry, {first, request.num_layers, request.tensors_per_layer}, side,
                          request.asked);
  };
  plan.local_layers = range(plan.local->geometry, is_push ? request.src_layer : request.dst_layer, "local");
  plan.remote_layers =
      range(plan.remote->geometry, is_push ? request.dst_layer : request.src_layer, "remote");
  if (plan.local_layers.layers != plan.remote_layers.layers) {
    refuse(Message::layers_do_not_match, {{"asked", request.asked},
                                          {"local", plan.local_layers.layers},
                                          {"remote", plan.remote_layers.layers},
                                          {"peer", link.peer().name}});
  }
  if (request.size_bytes != -1 && request.size_bytes <= 0)
    refuse(Message::bad_size, {{"asked", request.asked}, {"value", request.size_bytes}});
  Ends(request, plan, link.peer().name).check();
}

}  // namespace

TransferPlan plan_transfer(Link& link, const TransferRequest& request) {
  require_unfenced(link, request.may_pack, request.asked);
  const bool is_push = request.direction == Direction::kPush;
  const bool has_entry = request.layout != Layout::kBlocks;
  TransferPlan plan;
  plan.direction = request.direction;
  const KnownEnds::Versions versions{link.caches().version(), link.remote_caches().version()};
  const bool is_known = link.known_ends().find(link.caches(), link.remote_caches(), request, &plan);
  if (!is_known) find_ends(link, request, plan);
  const Ends ends(request, plan, link.peer().name);
  if (has_entry) check_entry_index(request, "the source's batch index", request.src_entry, ends.source());
  plan.runs = runs_of(request, ends);
  plan.shape = {request.layout, request.src_entry, request.dst_entry, request.size_bytes};
  // HIXL moves what was registered with it; a proof is not.
  const bool takes_proofs = link.proofs().knows_peer() && std::string_view(link.transport().name()) != "hixl";
  plan.is_proven = takes_proofs && is_push && request.may_pack && !has_entry && fits_proof(plan.runs.size());
  if (!is_known || plan.is_proven) plan.needs = needs_of(link, plan, is_push);
  if (!is_known && !plan.is_proven && !plan.local->is_copy) link.known_ends().keep(versions, request, plan);
  check_timeout(request.asked, request.timeout_ms, 0);
  plan.timeout = request.timeout_ms > 0 ? std::chrono::milliseconds(request.timeout_ms)
                                        : link.options().transfer_timeout;
  if (request.ticket != 0) plan.ticket = find_publication(link, request, plan.timeout);
  return plan;
}

TransferPlan plan_publication(const Link& link, int64_t cache_id, int64_t first_tensor, int64_t tensors,
                              int64_t timeout_ms) {
  const char* asked = "publish";
  require_unfenced(link, false, asked);
  TransferPlan plan;
  plan.direction = Direction::kPublish;
  plan.local = link.caches().find_id(cache_id, asked);
  const int64_t all = plan.local->geometry.num_tensors();
  if (tensors < 0) tensors = all - first_tensor;
  if (first_tensor < 0 || tensors < 1 || first_tensor > all - tensors)
    refuse(Message::publication_out_of_range, {{"value", tensors}, {"first", first_tensor}, {"count", all}});
  if (first_tensor + tensors > static_cast<int64_t>(PublishedWord::kMostTensors)) {
    refuse(Message::tensor_cannot_be_published,
           {{"value", first_tensor + tensors - 1}, {"count", uint32_t{PublishedWord::kMostTensors}}});
  }
  check_timeout(asked, timeout_ms, 1);
  plan.local_layers = {first_tensor, 1, tensors};  // of which the receiver has one flag
  plan.remote_layers = {0, 1, 1};
  plan.timeout = std::chrono::milliseconds(timeout_ms);
  return plan;
}

}  // namespace datadist
