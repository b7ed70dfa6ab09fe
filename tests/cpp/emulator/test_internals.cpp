// The emulator's own parts: handles, words, the text of faults, keys, random interleaving.
#include <functional>
#include <map>
#include <random>

#include "../check.h"
#include "emulator/faults.h"
#include "emulator/handle.h"
#include "emulator/interleaving.h"
#include "emulator/ledger.h"
#include "emulator/value.h"

namespace emu {
namespace {

using Table = HandleTable<int, 5>;

// The message with which the call is refused.
std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.message;
  }
  return "nothing is refused";
}

TEST(emulator_handles_are_recognised_only_while_they_live) {
  Table table("test");
  HandleTable<int, 6> of_another_kind("other");
  std::mt19937_64 chance(1);
  std::map<void*, int> live;
  std::vector<void*> dead;
  for (int i = 0; i < 20'000; ++i) {
    if (live.empty() || chance() % 2 == 0) {
      void* const handle = table.add(std::make_shared<int>(i));
      CHECK(live.emplace(handle, i).second);
    } else {
      const auto it = std::next(live.begin(), static_cast<ptrdiff_t>(chance() % live.size()));
      CHECK_EQUAL(*table.remove(it->first), it->second);
      dead.push_back(it->first);
      live.erase(it);
    }
  }
  CHECK_EQUAL(table.live(), live.size());
  for (const auto& [handle, value] : live) {
    CHECK_EQUAL(*table.get(handle), value);
    CHECK(of_another_kind.find(handle) == nullptr);
  }
  for (void* const handle : dead) {
    CHECK(table.find(handle) == nullptr);
    CHECK(table.remove(handle) == nullptr);
  }
}

TEST(emulator_handles_that_are_made_up_are_refused) {
  Table table("test");
  table.add(std::make_shared<int>(1));
  std::mt19937_64 chance(2);
  for (int i = 0; i < 100'000; ++i) {
    const auto* made_up = reinterpret_cast<const void*>(chance());
    CHECK(table.find(made_up) == nullptr);
  }
  CHECK(refusal([&] { table.get(nullptr); }).find("not a live test handle") != std::string::npos);
}

TEST(emulator_words_compare_in_four_modes) {
  enum { kGe, kEq, kAnd, kNor };
  CHECK(value_holds(5, 5, kGe) && value_holds(6, 5, kGe) && !value_holds(4, 5, kGe));
  CHECK(value_holds(uint64_t{1} << 62, 5, kGe));
  CHECK(value_holds(2, UINT64_MAX, kGe));  // it has wrapped around
  CHECK(value_holds(5, 5, kEq) && !value_holds(6, 5, kEq));
  CHECK(value_holds(6, 2, kAnd) && !value_holds(4, 2, kAnd));
}

TEST(emulator_faults_are_read_from_text) {
  const auto rules = parse_faults("fail aclrtMemcpyAsync nth=3 code=507013; bandwidth d2d=2e9");

  CHECK_EQUAL(rules.size(), 2u);
  CHECK_EQUAL(rules[0].nth, 3u);
  CHECK_EQUAL(rules[0].code, 507013);
  CHECK_EQUAL(rules[1].amount, 2'000'000'000u);
  CHECK(refusal([] { parse_faults("fail aclrtMemcpyAsync"); }).find("code") != std::string::npos);
}

// Whatever the text: rules, or an error; never anything else.
TEST(emulator_faults_take_any_text) {
  const char* const words[] = {"fail",        "late",
                               "aclrtMalloc", "code=",
                               "1",           "nth=",
                               "-1",          ";",
                               " ",           "seconds=",
                               "1e400",       "nan",
                               "0x7",         "=",
                               "d2d=",        "times=",
                               "inf",         "hold_copy",
                               "after=",      "limit",
                               "streams=",    "99999999999999999999",
                               "device=",     "address=",
                               "bytes=",      "\xff",
                               "task_delay",  "direction=peer"};
  std::mt19937_64 chance(3);
  int accepted = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string text;
    for (uint64_t n = chance() % 10; n > 0; --n) {
      text += words[chance() % std::size(words)];
      if (chance() % 2 == 0) text += ' ';
    }
    try {
      parse_faults(text);
      ++accepted;
    } catch (const Error&) {
    }
  }
  CHECK(accepted > 0);
}

TEST(emulator_keys_survive_being_printed) {
  std::mt19937_64 chance(4);
  for (int i = 0; i < 10'000; ++i) {
    IpcKey key;
    key.pid = static_cast<int32_t>(chance() >> 40);
    key.started = chance() >> 24;
    key.ledger_fd = static_cast<int32_t>(chance() % 1000);
    key.slot = static_cast<uint32_t>(chance() % Ledger::kSlots);
    key.generation = static_cast<uint32_t>(chance());
    key.secret = chance();
    char text[IpcKey::kLength];
    key.print(text);
    IpcKey found;
    CHECK(IpcKey::parse(text, found));
    CHECK(found.pid == key.pid && found.started == key.started && found.secret == key.secret &&
          found.slot == key.slot && found.generation == key.generation && found.ledger_fd == key.ledger_fd);
  }
}

TEST(emulator_keys_that_are_no_keys_are_refused) {
  std::mt19937_64 chance(5);
  for (int i = 0; i < 100'000; ++i) {
    char text[IpcKey::kLength];
    for (char& c : text) c = static_cast<char>(chance());
    text[IpcKey::kLength - 1] = '\0';
    IpcKey found;
    CHECK(!IpcKey::parse(text, found));
  }
}

TEST(emulator_interleaving_follows_from_its_seed) {
  Interleaving one(7, 0, 3);
  Interleaving same(7, 0, 3);
  Interleaving other(8, 0, 3);
  for (int i = 0; i < 1000; ++i) {
    CHECK(one.hold() == same.hold());
    CHECK_EQUAL(one.pieces(size_t{1} << 20), same.pieces(size_t{1} << 20));
    other.hold();
    other.pieces(size_t{1} << 20);
  }
  CHECK_EQUAL(one.decisions(), same.decisions());
  CHECK(one.decisions() != other.decisions());
}

}  // namespace
}  // namespace emu
