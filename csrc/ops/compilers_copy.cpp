#include "ops/compilers_copy.h"

#include <utility>
#include <vector>

#include "error.h"
#include "link/link.h"
#include "messages/messages.h"

namespace datadist {
namespace {

// What a link's transport knows of the memory goes before the memory does.
struct Held {
  std::weak_ptr<Link> link;
  std::vector<char*> addresses;
  std::vector<c10::Storage> storages;
  ~Held() {
    const auto known_to = link.lock();
    for (char* address : addresses) {
      if (known_to != nullptr) known_to->transport().forget_memory(address);
    }
  }
};

}  // namespace

std::shared_ptr<LocalCache> compilers_copy(const std::shared_ptr<Link>& link, at::TensorList tensors,
                                           bool is_blocks, bool is_awaited, const char* asked) {
  link->caches().let_go_of_copies();
  if (tensors[0].dim() == 0 || tensors[0].size(0) == 0) return nullptr;
  Geometry geometry{tensors[0].size(0), is_blocks, {}};
  const auto held = std::make_shared<Held>();
  held->link = link;
  std::vector<Place> places;
  for (const at::Tensor& tensor : tensors) {
    const auto bytes = static_cast<int64_t>(tensor.nbytes());
    const bool is_on_host = tensor.device().is_cpu();
    const bool is_here = is_on_host || tensor.device().index() == link->engine().device();
    if (tensor.device() != tensors[0].device() || !is_here || !tensor.is_contiguous() || bytes == 0 ||
        bytes % geometry.num_blocks != 0) {
      return nullptr;
    }
    geometry.strides.push_back(bytes / geometry.num_blocks);
    char* const address = static_cast<char*>(tensor.data_ptr());
    places.push_back({address, reach_of_tensor(address, bytes, is_on_host)});
    held->addresses.push_back(address);
    held->storages.push_back(tensor.storage());
  }
  auto copy = link->caches().add_copy(std::move(geometry), std::move(places), held);
  if (copy != nullptr && !is_awaited)
    refuse(Message::copy_is_not_awaited, {{"asked", asked}, {"value", copy->id}});
  return copy;
}

}  // namespace datadist
