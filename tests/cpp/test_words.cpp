// The words of the control page, and what memory that is given back holds when it is taken again.
#include <random>

#include "acl/check.h"
#include "acl/queue.h"
#include "acl/stream.h"
#include "check.h"
#include "error.h"
#include "link/page.h"
#include "link/ticket.h"
#include "link/words.h"
#include "transport/mapped/mapped.h"

namespace datadist {
namespace {

TEST(words_of_a_sender_survive_packing) {
  std::mt19937_64 chance(1);
  for (int i = 0; i < 10'000; ++i) {
    const SentWord word{static_cast<uint32_t>(chance()), static_cast<uint8_t>(chance()),
                        static_cast<uint8_t>(chance()),  static_cast<uint8_t>(chance()),
                        SentWord::State(chance() % 4),   chance() % 2 == 0};
    const SentWord found = SentWord::unpack(word.pack());
    CHECK(found.epoch == word.epoch && found.first_layer == word.first_layer && found.code == word.code &&
          found.last_layer == word.last_layer && found.state == word.state &&
          found.is_publication == word.is_publication);
  }
}

TEST(words_of_a_receiver_survive_packing) {
  std::mt19937_64 chance(2);
  for (int i = 0; i < 10'000; ++i) {
    const TakenWord word{static_cast<uint32_t>(chance()), static_cast<uint8_t>(chance()),
                         TakenWord::State(chance() % 4)};
    const TakenWord found = TakenWord::unpack(word.pack());
    CHECK(found.epoch == word.epoch && found.code == word.code && found.state == word.state);
  }
}

TEST(words_of_a_publication_survive_packing_within_their_limits) {
  std::mt19937_64 chance(3);
  for (int i = 0; i < 10'000; ++i) {
    PublishedWord word;
    word.cache = static_cast<uint32_t>(chance()) & PublishedWord::kCacheMask;
    word.first_tensor = static_cast<uint32_t>(chance()) % (PublishedWord::kMostTensors + 1);
    word.tensors = static_cast<uint32_t>(chance()) % (PublishedWord::kMostTensors + 1);
    word.epoch_low = static_cast<uint32_t>(chance()) & PublishedWord::kEpochMask;
    const PublishedWord found = PublishedWord::unpack(word.pack());
    CHECK(found.cache == word.cache && found.first_tensor == word.first_tensor &&
          found.tensors == word.tensors && found.epoch_low == word.epoch_low);
  }
}

TEST(words_hold_status_codes_in_a_byte) {
  for (const int64_t code : {kSuccess, kKvCacheNotExist, kParamInvalid, kNotYetLink, kTimeout, kFailed}) {
    CHECK_EQUAL(long_code(short_code(code)), code);
  }
  CHECK_EQUAL(long_code(short_code(507013)), int64_t{kFailed});
}

TEST(words_of_flags_and_chunks_never_share_a_place) {
  CHECK(flag_offset(0, 0) >= sizeof(Mail));
  for (size_t slot = 0; slot < kSlots; ++slot) {
    for (size_t layer = 1; layer < kLayers; ++layer) {
      CHECK_EQUAL(flag_offset(slot, layer) - flag_offset(slot, layer - 1), sizeof(uint64_t));
    }
    CHECK(slot == 0 || flag_offset(slot, 0) == flag_offset(slot - 1, kLayers - 1) + sizeof(uint64_t));
  }
  CHECK_EQUAL(flag_offset(kSlots - 1, kLayers - 1) + sizeof(uint64_t), arrived_offset(0));
  for (size_t slot = 1; slot < kSlots; ++slot) {
    CHECK_EQUAL(arrived_offset(slot) - arrived_offset(slot - 1), sizeof(uint64_t));
    CHECK_EQUAL(credit_offset(slot) - credit_offset(slot - 1), sizeof(uint64_t));
  }
  CHECK_EQUAL(arrived_offset(kSlots - 1) + sizeof(uint64_t), credit_offset(0));
  CHECK_EQUAL(credit_offset(kSlots - 1) + sizeof(uint64_t), kPageBytes);
}

TEST(words_of_poison_pass_every_wait_for_their_epoch_and_none_for_a_much_later_one) {
  const auto passes = [](uint64_t current, uint64_t value) {
    return static_cast<int64_t>(current - value) >= 0;  // the compare of a wait
  };
  for (const uint64_t epoch : {uint64_t{1}, uint64_t{0xFFFF'FFFF}}) {
    CHECK(passes(poison_of(epoch), epoch));
    CHECK(passes(poison_of(epoch), epoch + 1000));
  }
}

TEST(words_of_tickets_stay_below_what_a_double_holds) {
  const TicketNumber number{(1 << 20) - 1, 1023, TicketNumber::kEpochMask};

  const TicketNumber found = TicketNumber::unpack(number.pack());

  CHECK(number.pack() < int64_t{1} << 53);
  CHECK(found.link == number.link && found.slot == number.slot && found.epoch_low == number.epoch_low);
}

// A context and a stream of device 0.
struct Device {
  Device() : context(0), stream(context, acl::OnFailure::kStop) {}
  void sync() { DATADIST_ACL(acl::synchronize(stream.get(), 20'000)); }
  acl::Context context;
  acl::Stream stream;
};

DeviceMemory zeroed(size_t bytes, Device& device) {
  DeviceMemory memory = mapped::allocate(0, bytes);
  DATADIST_ACL(acl::queue_fill(memory.address, 0, bytes, device.stream.get()));
  device.sync();
  return memory;
}

TEST(words_that_were_given_back_are_zero_when_they_are_taken_again) {
  Device device;
  WordPool pool([&](size_t bytes) { return zeroed(bytes, device); });
  const auto tick = [&] {
    pool.queue_reads(device.stream.get());
    device.sync();
    pool.queue_zeroes(device.stream.get());
    device.sync();
    pool.zeroes_done();
  };
  const auto words = pool.take(8192);
  for (const Word& word : words) DATADIST_ACL(acl::queue_write(word.address, 77, device.stream.get()));
  device.sync();
  tick();
  CHECK_EQUAL(words[5].seen(), 77u);
  for (const Word& word : words) pool.give_back(word);
  tick();

  const auto again = pool.take(8192);
  pool.queue_reads(device.stream.get());
  device.sync();

  for (const Word& word : again) CHECK_EQUAL(word.seen(), 0u);
}

TEST(words_that_were_given_back_are_not_taken_before_they_were_zeroed) {
  Device device;
  WordPool pool([&](size_t bytes) { return zeroed(bytes, device); });
  const Word word = pool.take();
  pool.give_back(word);

  for (int i = 0; i < 8191; ++i) CHECK(pool.take().address != word.address);
}

TEST(words_of_pages_do_not_overlap) {
  Device device;
  PageArena arena([&](size_t bytes) { return zeroed(bytes, device); });
  std::vector<char*> taken;
  for (int i = 0; i < 40; ++i) taken.push_back(arena.take().address);
  std::sort(taken.begin(), taken.end());
  for (size_t i = 1; i < taken.size(); ++i) {
    CHECK(taken[i] - taken[i - 1] >= static_cast<ptrdiff_t>(kPageBytes));
  }
}

TEST(words_in_reserve_are_there_for_who_must_not_wait_and_for_nobody_else) {
  acl::ThreadDevice device(0);
  int allocations = 0;
  WordPool pool([&](size_t bytes) {
    ++allocations;
    return mapped::allocate(0, bytes);
  });
  CHECK(pool.take_reserved(2).empty());
  CHECK_EQUAL(allocations, 0);
  pool.fill_reserve();
  CHECK_EQUAL(allocations, 1);
  pool.take(8192 - 512);
  CHECK_EQUAL(allocations, 1);
  CHECK_EQUAL(pool.take_reserved(2).size(), size_t{2});  // of what no other gets
  CHECK_EQUAL(pool.take(1).size(), size_t{1});
  CHECK_EQUAL(allocations, 2);
  pool.take(8192 - 3);  // 512 are left again
  while (!pool.take_reserved(2).empty());
  CHECK_EQUAL(allocations, 2);
  pool.fill_reserve();
  pool.fill_reserve();
  CHECK_EQUAL(allocations, 3);
  CHECK_EQUAL(pool.take_reserved(2).size(), size_t{2});
}

}  // namespace
}  // namespace datadist
