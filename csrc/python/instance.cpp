// Instance and what its methods take: caches, their exports, links.
#include "link/instance.h"

#include "cache/paged.h"
#include "link/forked.h"
#include "messages/messages.h"
#include "python/tensors.h"
#include "transport/engine/engines.h"
#include "transport/mapped/host_memory.h"
#include "transport/mapped/mapped.h"
#include "transport/nixl/symbols.h"

namespace datadist {
namespace {

bool is_at(const at::Tensor& tensor, int device) {
  return device < 0 ? tensor.device().is_cpu()
                    : tensor.device().is_privateuseone() && tensor.device().index() == device;
}

// What lies where, and how large a block of each tensor is. All on the instance's device, or all on the CPU.
std::vector<Place> check_cache_tensors(const std::vector<at::Tensor>& tensors, int device,
                                       Geometry* geometry) {
  if (!(!tensors.empty() && geometry->num_blocks >= 1))
    refuse(Message::bad_value,
           {{"name", "register_cache: tensors"},
            {"value", join("a list of ", tensors.size(), " tensors of ", geometry->num_blocks, " blocks")},
            {"expected", "at least one of each"}});
  const int where = tensors[0].device().is_cpu() ? -1 : device;
  std::vector<Place> places;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& tensor = tensors[i];
    if (!is_at(tensor, where))
      refuse(Message::tensor_on_another_device, {{"name", join("register_cache: tensor ", i)},
                                                 {"value", tensor.device().str()},
                                                 {"expected", join("npu:", device, ", or the CPU for all")}});
    if (!tensor.is_contiguous())
      refuse(Message::tensor_not_contiguous,
             {{"name", join("register_cache: tensor ", i)}, {"value", c10::str(tensor.strides())}});
    const auto bytes = static_cast<int64_t>(tensor.nbytes());
    if (!(bytes >= geometry->num_blocks && bytes % geometry->num_blocks == 0))
      refuse(Message::tensor_is_no_blocks,
             {{"value", bytes}, {"tensor", i}, {"count", geometry->num_blocks}});
    geometry->strides.push_back(bytes / geometry->num_blocks);
    char* const address = static_cast<char*>(tensor.data_ptr());
    places.push_back({address, reach_of_tensor(address, bytes, where < 0)});
  }
  return places;
}

int64_t register_cache(Instance& instance, const std::vector<at::Tensor>& tensors, int64_t num_blocks,
                       bool is_blocks, bool receives, bool is_offered) {
  Geometry geometry{num_blocks, is_blocks, {}};
  auto places = check_cache_tensors(tensors, instance.device(), &geometry);
  std::vector<std::shared_ptr<void>> storage;
  for (const at::Tensor& tensor : tensors)
    storage.push_back(std::make_shared<c10::Storage>(tensor.storage()));
  std::vector<uintptr_t> slabs(places.size(), 0);
  if (places.front().reach == Reach::kDevice) {
    std::vector<OwnMemory> memory;
    for (size_t t = 0; t < places.size(); ++t)
      memory.push_back({places[t], static_cast<size_t>(geometry.strides[t] * num_blocks)});
    slabs = mapped::slabs_of(instance.device(), memory);
  }
  return instance.caches().add(std::move(geometry), std::move(places), std::move(slabs), std::move(storage),
                               receives, is_offered);
}

std::vector<OwnMemory> memory_of(Instance& instance, int64_t cache_id, const char* asked) {
  const auto cache = instance.caches().get(cache_id, asked);
  std::vector<OwnMemory> memory;
  for (size_t t = 0; t < cache->tensors.size(); ++t)
    memory.push_back({cache->tensors[t], cache->bytes_of(static_cast<int64_t>(t))});
  return memory;
}

std::vector<Exported> export_cache(Instance& instance, int64_t cache_id, int64_t handle) {
  const auto link = instance.link(handle, "export_cache");
  return link->transport().export_memory(memory_of(instance, cache_id, "export_cache"));
}

void try_export_cache(Instance& instance, int64_t cache_id) {
  mapped::export_on_this_host(instance.device(), memory_of(instance, cache_id, "try_export_cache"));
}

void add_remote_cache(Instance& instance, int64_t handle, int64_t cache_id, std::optional<uint64_t> model_id,
                      bool is_blocks, int64_t num_blocks, const std::vector<int64_t>& tensor_bytes,
                      const std::vector<Exported>& segments, bool receives) {
  const auto link = instance.link(handle, "add_remote_cache");
  require(!segments.empty() && tensor_bytes.size() == segments.size() && num_blocks >= 1, kParamInvalid,
          "add_remote_cache: ", link->peer().name, " announced ", segments.size(), " tensors with ",
          tensor_bytes.size(), " sizes in ", num_blocks, " blocks");
  auto cache = std::make_shared<RemoteCache>();
  cache->id = cache_id;
  cache->model_id = model_id;
  cache->geometry = {num_blocks, is_blocks, {}};
  cache->receives = receives;
  for (size_t i = 0; i < segments.size(); ++i) {
    const int64_t bytes = tensor_bytes[i];
    require(bytes >= num_blocks && bytes % num_blocks == 0 && segments[i].kind == segments[0].kind,
            kParamInvalid, "add_remote_cache: ", link->peer().name, " announced a tensor of ", bytes,
            " bytes in ", num_blocks, " blocks, or tensors in memory of different kinds");
    cache->geometry.strides.push_back(bytes / num_blocks);
  }
  cache->exports = segments;
  link->remote_caches().add(std::move(cache));
}

LinkOptions link_options(int64_t keep_alive_ms, int64_t transfer_timeout_ms, int64_t max_in_flight,
                         int64_t streams_per_link, int64_t stream_budget, int64_t packed_staging_bytes,
                         int64_t stream_idle_ms, int64_t close_timeout_ms, int64_t staging_limit,
                         bool verifies, int64_t engine_chunk_bytes, int64_t engine_chunks,
                         std::string listen_ip, std::map<std::string, std::string> hixl_options) {
  if (!(engine_chunk_bytes >= 4096 && engine_chunk_bytes <= 1 << 30 && engine_chunks >= 2 &&
        engine_chunks <= 64))
    refuse(Message::bad_value, {{"name", "engine_chunk_bytes"},
                                {"value", join(engine_chunk_bytes, ", engine_chunks = ", engine_chunks)},
                                {"expected", "4096 to 1 GiB, and 2 to 64"}});
  if (chunk_bytes_of(static_cast<size_t>(std::max<int64_t>(packed_staging_bytes, 0))) <= 0)
    refuse(Message::option_outside,
           {{"name", "packed_staging_bytes"},
            {"value", packed_staging_bytes},
            {"expected", join("at least ", kStagingWindows * kChunksPerWindow * kPackedAlignment)}});
  if (!(keep_alive_ms >= 100 && transfer_timeout_ms >= 1))
    refuse(Message::option_outside,
           {{"name", "keep_alive_ms"},
            {"value", join(keep_alive_ms, ", transfer_timeout_ms = ", transfer_timeout_ms)},
            {"expected", "at least 100, and at least 1"}});
  return {std::chrono::milliseconds(keep_alive_ms),
          std::chrono::milliseconds(transfer_timeout_ms),
          static_cast<size_t>(max_in_flight),
          static_cast<size_t>(streams_per_link),
          static_cast<size_t>(stream_budget),
          static_cast<size_t>(packed_staging_bytes),
          std::chrono::milliseconds(stream_idle_ms),
          std::chrono::milliseconds(close_timeout_ms),
          std::make_shared<StagingBudget>(static_cast<size_t>(staging_limit)),
          verifies,
          static_cast<size_t>(engine_chunk_bytes),
          static_cast<size_t>(engine_chunks),
          std::move(listen_ip),
          std::move(hixl_options)};
}

}  // namespace

void define_instance(py::module_& m) {
  const auto nogil = py::call_guard<py::gil_scoped_release>();
  py::class_<Exported>(m, "Segment")
      .def(py::init([](const py::bytes& handle, int64_t offset, uint64_t address, int kind) {
             require(kind >= 0 && kind <= 2, kParamInvalid, "Segment: kind ", kind, ", expected 0 to 2");
             return Exported{std::string(handle), offset, address, static_cast<MemoryKind>(kind)};
           }),
           py::arg("handle"), py::arg("offset"), py::arg("address"), py::arg("kind") = 0)
      .def_property_readonly("handle", [](const Exported& segment) { return py::bytes(segment.handle); })
      .def_readonly("offset", &Exported::offset)
      .def_readonly("address", &Exported::address)
      .def_property_readonly("kind", [](const Exported& segment) { return static_cast<int>(segment.kind); });

  m.def("set_nixl_library", &nixl::set_library, py::arg("path"));
  m.def("engines", [] {
    std::map<std::string, std::string> why_not;
    for (const engine::Kind& kind : engine::kinds()) why_not[kind.name] = kind.why_not();
    return why_not;
  });

  py::class_<Instance>(m, "Instance")
      .def(
          py::init([](int device, int64_t cluster_id, int64_t keep_alive_ms, int64_t transfer_timeout_ms,
                      int64_t max_in_flight, int64_t streams_per_link, int64_t stream_budget,
                      int64_t packed_staging_bytes, int64_t stream_idle_ms, int64_t close_timeout_ms,
                      int64_t staging_limit, bool verifies, int64_t engine_chunk_bytes, int64_t engine_chunks,
                      std::string listen_ip, std::map<std::string, std::string> hixl_options) {
            return std::make_unique<Instance>(
                device, cluster_id,
                link_options(keep_alive_ms, transfer_timeout_ms, max_in_flight, streams_per_link,
                             stream_budget, packed_staging_bytes, stream_idle_ms, close_timeout_ms,
                             staging_limit, verifies, engine_chunk_bytes, engine_chunks, std::move(listen_ip),
                             std::move(hixl_options)));
          }),
          py::arg("device"), py::arg("cluster_id"), py::kw_only(), py::arg("keep_alive_ms") = 3000,
          py::arg("transfer_timeout_ms") = 1000, py::arg("max_in_flight") = 256,
          py::arg("streams_per_link") = 64, py::arg("stream_budget") = 1024,
          py::arg("packed_staging_bytes") = 64 << 20, py::arg("stream_idle_ms") = 5000,
          py::arg("close_timeout_ms") = 1000, py::arg("staging_limit") = int64_t{1} << 30,
          py::arg("verifies") = false, py::arg("engine_chunk_bytes") = 1 << 20, py::arg("engine_chunks") = 8,
          py::arg("listen_ip") = "", py::arg("hixl_options") = std::map<std::string, std::string>{}, nogil)
      .def("close", &Instance::close, nogil)
      .def("register_cache", &register_cache, py::arg("tensors"), py::arg("num_blocks"),
           py::arg("is_blocks") = true, py::arg("receives") = true, py::arg("is_offered") = true, nogil)
      .def("export_cache", &export_cache, py::arg("cache_id"), py::arg("link"), nogil)
      .def("try_export_cache", &try_export_cache, py::arg("cache_id"), nogil)
      .def(
          "withdraw_cache", [](Instance& self, int64_t id) { self.caches().withdraw(id); },
          py::arg("cache_id"), nogil)
      .def(
          "is_cache_in_use",
          [](Instance& self, int64_t id) {
            return self.caches().get(id, "is_cache_in_use")->transfers->load() > 0;
          },
          py::arg("cache_id"), nogil)
      .def(
          "release_cache", [](Instance& self, int64_t id) { self.release_cache(id); }, py::arg("cache_id"))
      .def(
          "open_link",
          [](Instance& self, int64_t cluster_id, std::string name, int device, int pid, int64_t start_time,
             bool in_this_process, bool is_fenced, bool is_on_this_host, bool is_in_this_super_pod,
             std::string transport) {
            const auto link =
                self.open_link({cluster_id, std::move(name), device, pid, start_time, in_this_process,
                                is_fenced, is_on_this_host, is_in_this_super_pod, std::move(transport)});
            try {
              Transport& way = link->transport();
              const OwnMemory page{{link->page().address, Reach::kDevice}, kPageBytes};
              const Exported exported = way.export_memory({page}).front();
              return std::make_pair(link->handle(), exported);
            } catch (...) {
              self.close_link(link->handle());
              throw;
            }
          },
          py::arg("peer_cluster_id"), py::arg("peer_name"), py::arg("peer_device"), py::arg("peer_pid"),
          py::arg("peer_start_time"), py::arg("in_this_process"), py::arg("is_fenced") = false,
          py::arg("is_on_this_host") = true, py::arg("is_in_this_super_pod") = true,
          py::arg("transport") = "mapped", nogil)
      .def(
          "link_address",
          [](Instance& self, int64_t link) {
            std::string address;
            {
              py::gil_scoped_release nogil;
              address = self.link(link, "link_address")->transport().address();
            }
            return py::bytes(address);
          },
          py::arg("link"))
      .def(
          "connect_link",
          [](Instance& self, int64_t link, int64_t peer_link, const Exported& page,
             const std::string& transport_address, const std::optional<Exported>& peer_proofs) {
            self.link(link, "connect_link")->connect(peer_link, page, transport_address, peer_proofs);
          },
          py::arg("link"), py::arg("peer_link"), py::arg("peer_page"), py::arg("transport_address") = "",
          py::arg("peer_proofs") = std::nullopt, nogil)
      .def(
          "export_proofs",
          [](Instance& self, int64_t link) { return self.link(link, "export_proofs")->export_proofs(); },
          py::arg("link"), nogil)
      .def("add_remote_cache", &add_remote_cache, py::arg("link"), py::arg("cache_id"), py::arg("model_id"),
           py::arg("is_blocks"), py::arg("num_blocks"), py::arg("tensor_bytes"), py::arg("segments"),
           py::arg("receives") = true, nogil)
      .def(
          "drop_remote_cache",
          [](Instance& self, int64_t link, int64_t id) {
            self.link(link, "drop_remote_cache")->remote_caches().drop(id);
          },
          py::arg("link"), py::arg("cache_id"), nogil)
      .def(
          "is_remote_cache_in_use",
          [](Instance& self, int64_t link, int64_t id) {
            return self.link(link, "is_remote_cache_in_use")->remote_caches().is_in_use(id);
          },
          py::arg("link"), py::arg("cache_id"), nogil)
      .def(
          "link_status",
          [](Instance& self, int64_t handle) {
            const auto link = self.link(handle, "link_status");
            const auto [code, why] = link->end();
            return std::make_tuple(link->is_alive(), code, why);
          },
          py::arg("link"), nogil)
      .def(
          "link_counters",
          [](Instance& self, int64_t link) {
            require_not_forked("link_counters");
            const auto counts = self.counts_of(link);
            return std::make_tuple(counts.transfers, counts.failures, counts.bytes);
          },
          py::arg("link"), nogil)
      .def(
          "cut_off_of",
          [](Instance& self, int64_t link) {
            auto flag = self.link(link, "cut_off_of")->transport().cut_off();
            return py::cpp_function([flag = std::move(flag)] { return flag != nullptr && *flag; });
          },
          py::arg("link"))
      .def(
          "close_link",
          [](Instance& self, int64_t link, std::optional<int64_t> patience_ms) {
            if (patience_ms) {
              self.close_link(link, std::chrono::milliseconds(*patience_ms));
            } else {
              self.close_link(link);
            }
          },
          py::arg("link"), py::arg("patience_ms") = std::nullopt, nogil);
}

}  // namespace datadist
