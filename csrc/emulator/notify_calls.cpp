// Notifies: one bit between two streams, also of two processes.

#include <unistd.h>

#include "emulator/context.h"
#include "emulator/device.h"
#include "emulator/entry.h"
#include "emulator/ipc_memory.h"
#include "emulator/notify.h"
#include "emulator/runtime.h"
#include "emulator/stream.h"

namespace emu {
namespace {

constexpr const char* kInvalidUse = "importers only record; the process that made the notify waits for it";

std::shared_ptr<Notify> notify_of(aclrtNotify handle) {
  return Runtime::get().notifies.get(not_null(handle, "notify"));
}

// For what only the maker may do.
std::shared_ptr<Notify> own_notify(aclrtNotify handle) {
  auto notify = notify_of(handle);
  if (notify->is_imported()) fail(ACL_ERROR_RT_PARAM_INVALID, "the notify was imported: %s", kInvalidUse);
  return notify;
}

void check_ipc() {
  const Profile& profile = Runtime::get().config.profile;
  if (profile.has_ipc_sync()) return;
  fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "%s has no notifies between processes", profile.soc_name());
}

void check_queued_from_host(const Notify& notify) {
  if (notify.flags != ACL_NOTIFY_DEVICE_USE_ONLY) return;
  fail(ACL_ERROR_RT_PARAM_INVALID, "the notify was made with ACL_NOTIFY_DEVICE_USE_ONLY");
}

class RecordNotify final : public Task {
 public:
  explicit RecordNotify(std::shared_ptr<Notify> notify)
      : Task("aclrtRecordNotify"), notify_(std::move(notify)) {}

  aclError run(Stream& stream) override {
    if (notify_->is_imported()) {
      std::string why;
      const aclError code = notify_->import->check(stream.context().device, notify_->peer_enabled, why);
      if (code != ACL_SUCCESS) {
        stream.explain(std::move(why));
        return code;
      }
    }
    notify_->set();
    return ACL_SUCCESS;
  }
  void describe(TaskFacts& facts) const override {
    facts.name = what;
    facts.kind = TaskKind::NotifyRecord;
    facts.sync = &notify_->point;
  }

 private:
  const std::shared_ptr<Notify> notify_;
};

class WaitNotify final : public Task {
 public:
  WaitNotify(std::shared_ptr<Notify> notify, uint32_t timeout_s)
      : Task("aclrtWaitAndResetNotify"), notify_(std::move(notify)), timeout_s_(timeout_s) {}

  aclError run(Stream& stream) override {
    Deadline deadline;
    if (timeout_s_ != 0) deadline = Clock::now() + std::chrono::seconds(timeout_s_);
    while (!notify_->consume()) {
      if (stream.stopping()) return ACL_ERROR_RT_STREAM_ABORT;
      if (deadline && Clock::now() >= *deadline) {
        stream.explain(text("notify %u was not recorded in %u s", notify_->id, timeout_s_));
        return ACL_ERROR_RT_WAIT_TIMEOUT;
      }
      stream.park(notify_->word, 0, std::chrono::milliseconds(5));
    }
    return ACL_SUCCESS;
  }
  void describe(TaskFacts& facts) const override {
    facts.name = what;
    facts.kind = TaskKind::NotifyWait;
    facts.sync = &notify_->point;
  }

 private:
  const std::shared_ptr<Notify> notify_;
  const uint32_t timeout_s_;
};

aclError import_notify(aclrtNotify* out, const char* text, uint64_t flags) {
  not_null(out, "notify");
  check_ipc();
  if ((flags & ~ACL_RT_NOTIFY_IMPORT_FLAG_ENABLE_PEER_ACCESS) != 0) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "flags 0x%lx; defined are 0 and 0x2 (memory has 0x1)", flags);
  }
  IpcKey key;
  if (!IpcKey::parse(not_null(text, "key"), key)) {
    fail(ACL_ERROR_RT_PARAM_INVALID, "'%.64s' is not a key of aclrtNotifyGetExportKey", text);
  }
  if (key.pid == getpid()) fail(ACL_ERROR_RT_PARAM_INVALID, "the key was exported by this same process");
  Imports::Opened opened = Runtime::get().imports->open_shared(key, ExportKind::Notify);
  *out = Runtime::get().notifies.add(std::make_shared<Notify>(
      Thread::self().context->device, opened.fd, opened.offset, std::move(opened.import), flags != 0));
  return ACL_SUCCESS;
}

}  // namespace
}  // namespace emu

using namespace emu;

aclError aclrtCreateNotify(aclrtNotify* notify, uint64_t flag) {
  return ENTER(aclrtCreateNotify, {
    not_null(notify, "notify");
    if (flag > ACL_NOTIFY_DEVICE_USE_ONLY)
      fail(ACL_ERROR_RT_PARAM_INVALID, "flag 0x%lx is neither 0 nor 1", flag);
    *notify = Runtime::get().notifies.add(
        std::make_shared<Notify>(Thread::self().context->device, static_cast<uint32_t>(flag)));
    return ACL_SUCCESS;
  });
}

aclError aclrtDestroyNotify(aclrtNotify notify) {
  return ENTER(aclrtDestroyNotify, {
    notify_of(notify)->close();
    Runtime::get().notifies.remove(notify);
    return ACL_SUCCESS;
  });
}

aclError aclrtRecordNotify(aclrtNotify notify, aclrtStream stream) {
  return ENTER(aclrtRecordNotify, {
    auto on = Thread::self().context->stream(stream);
    auto recorded = notify_of(notify);
    check_queued_from_host(*recorded);
    if (!recorded->is_imported() && !on->context().device.may_access(recorded->device.id)) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "the notify is of device %d, and device %d has no access to it",
           recorded->device.id, on->context().device.id);
    }
    on->submit(std::make_shared<RecordNotify>(std::move(recorded)));
    return ACL_SUCCESS;
  });
}

aclError aclrtWaitAndResetNotify(aclrtNotify notify, aclrtStream stream, uint32_t timeout) {
  return ENTER(aclrtWaitAndResetNotify, {
    auto on = Thread::self().context->stream(stream);
    auto awaited = own_notify(notify);
    check_queued_from_host(*awaited);
    if (&awaited->device != &on->context().device) {
      fail(ACL_ERROR_RT_PARAM_INVALID,
           "the notify is of device %d, and only that device waits for it; stream %d is of %d",
           awaited->device.id, on->id, on->context().device.id);
    }
    on->submit(std::make_shared<WaitNotify>(std::move(awaited), timeout));
    return ACL_SUCCESS;
  });
}

aclError aclrtGetNotifyId(aclrtNotify notify, uint32_t* notifyId) {
  return ENTER(aclrtGetNotifyId, {
    *not_null(notifyId, "notifyId") = notify_of(notify)->id;
    return ACL_SUCCESS;
  });
}

aclError aclrtNotifyBatchReset(aclrtNotify* notifies, size_t num) {
  return ENTER(aclrtNotifyBatchReset, {
    not_null(notifies, "notifies");
    if (num == 0) fail(ACL_ERROR_RT_PARAM_INVALID, "num is 0");
    std::vector<std::shared_ptr<Notify>> all;  // none is reset unless all can be
    for (size_t i = 0; i < num; ++i) all.push_back(own_notify(notifies[i]));
    for (const auto& notify : all) notify->clear();
    return ACL_SUCCESS;
  });
}

aclError aclrtNotifyGetExportKey(aclrtNotify notify, char* key, size_t len, uint64_t flags) {
  return ENTER(aclrtNotifyGetExportKey, {
    auto shared = own_notify(notify);
    not_null(key, "key");
    check_ipc();
    if (len < IpcKey::kLength) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "len %zu; a key takes %zu bytes", len, IpcKey::kLength);
    }
    if ((flags & ~ACL_RT_NOTIFY_EXPORT_FLAG_DISABLE_PID_VALIDATION) != 0) {
      fail(ACL_ERROR_RT_PARAM_INVALID, "flags 0x%lx; defined are 0 and 0x2 (memory has 0x1)", flags);
    }
    const Exports::Range range{reinterpret_cast<uintptr_t>(shared.get()),
                               Runtime::get().notify_pool->fd(),
                               NotifyPool::offset(shared->device, shared->id),
                               sizeof(uint32_t),
                               shared->device.physical_id,
                               ExportKind::Notify};
    Runtime::get().exports->add(range, flags != 0).print(key);
    return ACL_SUCCESS;
  });
}

aclError aclrtNotifySetImportPid(aclrtNotify notify, int32_t* pid, size_t num) {
  return ENTER(aclrtNotifySetImportPid, {
    auto shared = own_notify(notify);
    not_null(pid, "pid");
    if (num == 0) fail(ACL_ERROR_RT_PARAM_INVALID, "num is 0");
    Runtime::get().exports->allow(reinterpret_cast<uintptr_t>(shared.get()), pid, num);
    return ACL_SUCCESS;
  });
}

aclError aclrtNotifySetImportPidInterServer(aclrtNotify notify, aclrtServerPid* serverPids, size_t num) {
  return ENTER(aclrtNotifySetImportPidInterServer, {
    auto shared = own_notify(notify);
    for (const int32_t pid : pids_of_servers(serverPids, num)) {
      Runtime::get().exports->allow(reinterpret_cast<uintptr_t>(shared.get()), &pid, 1);
    }
    return ACL_SUCCESS;
  });
}

aclError aclrtNotifyImportByKey(aclrtNotify* notify, const char* key, uint64_t flags) {
  return ENTER(aclrtNotifyImportByKey, { return import_notify(notify, key, flags); });
}
