// One end of a link over an engine: what comes back late, out of turn, damaged or never.
#include "message_oracle.h"
#include "scripted_engine.h"

namespace datadist {
namespace {

using namespace scripted;

TEST(pump_sends_no_word_that_tells_of_a_parcel_which_was_given_up) {
  End end;
  aclrtStream stream = end.stream();
  end.wire->finishes = false;
  end.push(stream, 0);
  end.write_word(stream);
  CHECK(becomes([&] { return end.wire->requests() == 1; }));

  std::atomic<bool> was_dropped{false};
  {
    std::lock_guard lock(end.wire->mutex);
    // Between the look at the board and the look at what is under way.
    end.wire->at_receive = [&] {
      end.transport->drop(stream);
      std::lock_guard inner(end.wire->mutex);
      end.wire->finishes = true;
      was_dropped = true;
    };
  }
  CHECK(becomes([&] { return was_dropped.load(); }));
  CHECK(becomes([&] { return end.wire->requests() == 0; }));

  end.wire->put(
      encode(ranges(Message::kTaken, 0, {})));  // whichever chunk it was: an end of the link at worst
  bool told = false;
  for (const Message& message : end.wire->messages()) {
    told = told || message.kind == Message::kScatter;
    CHECK(message.kind != Message::kWords || told);
  }
}

// Of the stream that is returned; the engine does not say that it has ended.
aclrtStream begin_a_parcel(End& end) {
  aclrtStream stream = end.stream();
  end.wire->finishes = false;
  end.push(stream, 0);
  CHECK_EQUAL(end.transport->flush(stream), 0);
  CHECK(becomes([&] { return end.wire->requests() == 1; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(5));  // all of its entries have been taken
  return stream;
}

TEST(pump_forgets_no_stream_while_a_parcel_of_it_is_under_way) {
  End end;
  aclrtStream stream = begin_a_parcel(end);

  CHECK(!end.transport->drop(stream));
  std::this_thread::sleep_for(std::chrono::milliseconds(5));  // the pump has looked whether it is quiet
  CHECK(!end.transport->drop(stream));
  {
    std::lock_guard lock(end.wire->mutex);
    end.wire->finishes = true;
  }
  CHECK(becomes([&] { return end.transport->drop(stream); }));
}

TEST(pump_has_not_sent_all_while_a_parcel_is_under_way) {
  End end;
  begin_a_parcel(end);

  CHECK(!end.transport->has_sent_all());
}

TEST(pump_says_that_a_peer_is_cut_off_only_when_its_engine_took_all_memory_back) {
  for (const bool takes_back : {true, false}) {
    End end;
    end.wire->takes_back = takes_back;
    CHECK(!end.transport->is_cut_off());

    end.transport->sever();

    CHECK(becomes([&] { return end.transport->is_severed(); }));
    CHECK_EQUAL(end.transport->is_cut_off(), takes_back);
  }
}

TEST(pump_gives_the_word_of_a_stream_back_after_it_was_written) {
  constexpr size_t kLarge = 32 << 20;
  End end(kLarge);
  aclrtStream stream = end.stream();
  CHECK_EQUAL(end.transport->write_word(end.remote.address, 7, nullptr, stream), 0);
  CHECK(becomes([&] { return end.transport->has_sent_all(); }));
  // Something that takes its time, in front of the write.
  std::vector<Range> named(64, Range{address_of(end.memory), kBytes});
  end.wire->put(encode(ranges(Message::kScatter, 0, named)));
  CHECK_EQUAL(end.transport->write_word(end.remote.address, 8, nullptr, stream), 0);
  CHECK_EQUAL(end.transport->settle(stream), 0);
  CHECK(becomes([&] { return end.transport->has_sent_all(); }));

  CHECK(becomes([&] { return end.transport->drop(stream); }));
  CHECK(becomes([&] { return end.words_back.load(); }));
  CHECK_EQUAL(end.last_word.load(), uint64_t{1});
}

TEST(pump_lets_no_stream_starve_another_one) {
  for (const bool is_first_long : {true, false}) {
    End end;
    const std::vector<aclrtStream> two{end.stream(), end.stream()};
    aclrtStream of_long = two[is_first_long ? 0 : 1];
    aclrtStream of_short = two[is_first_long ? 1 : 0];
    end.push(of_long, 0, 40);
    CHECK_EQUAL(end.transport->flush(of_long), 0);
    const auto filled = [&] {
      std::vector<Message> found;
      for (const Message& message : end.wire->messages())
        if (message.kind == Message::kScatter) found.push_back(message);
      return found;
    };
    CHECK(becomes([&] { return filled().size() == 2; }));  // as many as there are credits
    end.push(of_short, 50);
    CHECK_EQUAL(end.transport->flush(of_short), 0);
    CHECK_EQUAL(acl::synchronize(of_short, 20'000), 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));

    size_t before = 0;
    for (size_t i = 0; i < 40; ++i) {
      CHECK(becomes([&] { return filled().size() > i; }));
      const Message one = filled()[i];
      if (one.ranges.front().address == kPeerMemory + 50 * kChunk) break;
      ++before;
      end.wire->put(encode(ranges(Message::kTaken, one.chunk, {})));
    }
    CHECK(before < 40);  // a pump that serves one stream after the other sends all of the long push first
  }
}

TEST(pump_looks_at_everything_else_between_two_chunks_that_it_posts) {
  std::vector<int> looks;
  End end(kChunk, 4);
  end.wire->at_post = [&](const std::vector<engine::Piece>&) {
    looks.push_back(end.wire->looks);
    // An engine that takes its time: the other three have been copied when it returns.
    if (looks.size() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  };
  aclrtStream stream = end.stream();
  end.push(stream, 0, 4);
  CHECK_EQUAL(end.transport->flush(stream), 0);
  CHECK(becomes([&] { return end.wire->messages().size() == 4; }));

  CHECK_EQUAL(looks.size(), size_t{4});
  CHECK(std::adjacent_find(looks.begin(), looks.end()) == looks.end());
}

TEST(pump_leaves_a_request_to_what_is_staged_and_one_to_what_is_not) {
  for (const bool is_first_staged : {true, false}) {
    std::vector<char> memory(kBytes);
    End end(kChunk, 8, true);
    end.wire->finishes = false;
    const Mapped device = end.transport->map({"", 0, kPeerMemory + kBytes, MemoryKind::kDevice}, kBytes);
    const auto push = [&](aclrtStream stream, bool staged, size_t chunk) {
      const Mapped& to = staged ? device : end.remote;
      CHECK_EQUAL(
          end.transport->copy(to.address + chunk * kChunk, memory.data() + chunk * kChunk, kChunk, stream),
          0);
      CHECK_EQUAL(end.transport->flush(stream), 0);
    };
    aclrtStream of_long = end.stream();
    for (size_t chunk = 0; chunk < 6; ++chunk) push(of_long, is_first_staged, chunk);
    CHECK(becomes([&] { return end.wire->requests() == 3; }));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    CHECK_EQUAL(end.wire->requests(), size_t{3});

    push(end.stream(), !is_first_staged, 0);

    CHECK(becomes([&] { return end.wire->requests() == 4; }));
  }
}

int looks_within(End& end, std::chrono::milliseconds time) {
  const auto looks = [&] {
    std::lock_guard lock(end.wire->mutex);
    return end.wire->looks;
  };
  const int before = looks();
  std::this_thread::sleep_for(time);
  return looks() - before;
}

TEST(pump_looks_for_messages_less_often_the_longer_no_bytes_move) {
  using std::chrono::milliseconds;
  using std::chrono::steady_clock;
  End end;
  std::this_thread::sleep_for(milliseconds(100));

  CHECK(becomes([&] {
    int looks = 0;
    const auto began = steady_clock::now();
    for (int i = 0; i < 4; ++i) {
      end.wire->put(encode(ranges(Message::kReach, 0, {})));
      looks += looks_within(end, milliseconds(50));
    }
    return looks > 0 && looks <= 20 + (steady_clock::now() - began) / milliseconds(1);
  }));

  // And at once again after some did.
  CHECK(becomes([&] {
    const size_t taken = end.wire->messages().size();
    end.wire->put(encode(ranges(Message::kScatter, 0, {{address_of(end.memory), kChunk}})));
    CHECK(becomes([&] { return end.wire->messages().size() > taken; }));
    return looks_within(end, milliseconds(8)) > 20;
  }));
}

TEST(pump_without_messages_sleeps_until_a_stream_brings_something) {
  End end(kChunk, 2, false, false);
  CHECK(becomes([&] { return looks_within(end, std::chrono::milliseconds(100)) == 0; }));

  aclrtStream stream = end.stream();
  end.push(stream, 0);
  CHECK_EQUAL(end.transport->flush(stream), 0);
  CHECK(becomes([&] { return end.transport->has_sent_all(); }));
}

TEST(pump_has_little_more_under_way_directly_than_through_chunks) {
  size_t posted = 0;
  End end(kChunk, 4, true);
  end.wire->finishes = false;
  end.wire->at_post = [&](const std::vector<engine::Piece>& pieces) {
    for (const engine::Piece& piece : pieces) posted += piece.bytes;
  };
  aclrtStream stream = end.stream();
  end.push(stream, 0, 32);
  CHECK_EQUAL(end.transport->flush(stream), 0);
  CHECK(becomes([&] { return end.wire->requests() == 3; }));

  std::lock_guard lock(end.wire->mutex);
  CHECK_EQUAL(posted, 3 * 2 * kChunk);
}

// An engine knows the two tensors as two pieces of memory, and refuses what begins in one and ends in the
// other.
TEST(pump_merges_blocks_of_one_tensor_and_none_over_its_end) {
  std::vector<engine::Piece> posted;
  End end(kChunk, 16, true);
  end.wire->at_post = [&](const std::vector<engine::Piece>& pieces) {
    posted.insert(posted.end(), pieces.begin(), pieces.end());
  };
  const Mapped next = end.transport->map({"", 0, kPeerMemory + kBytes, MemoryKind::kPrivateHost}, kBytes);
  aclrtStream stream = end.stream();
  end.push(stream, 62);
  end.push(stream, 63);
  CHECK_EQUAL(end.transport->copy(next.address, end.memory.address + 64 * kChunk, kChunk, stream), 0);
  CHECK_EQUAL(end.transport->flush(stream), 0);
  CHECK(becomes([&] { return end.transport->has_sent_all(); }));

  std::lock_guard lock(end.wire->mutex);
  CHECK_EQUAL(posted.size(), size_t{2});
  CHECK_EQUAL(posted[0].remote, kPeerMemory + 62 * kChunk);
  CHECK_EQUAL(posted[0].bytes, 2 * kChunk);
  CHECK_EQUAL(posted[1].remote, kPeerMemory + kBytes);
}

TEST(pump_refuses_what_a_peer_may_not_say_by_name) {
  const DeviceMemory memory = mapped::allocate(0, 4096);
  const auto said = [](const std::string& text) {
    End end;
    return end.refusal_of(text);
  };
  const auto contains = [](const std::string& text, const std::string& what) {
    if (text.find(what) == std::string::npos) check::fail(__FILE__, __LINE__, text + " does not say " + what);
  };
  const std::string valid = encode(ranges(Message::kTaken, 0, {}));
  const auto with = [&](size_t at, uint32_t value) {
    std::string text = valid;
    std::memcpy(text.data() + at, &value, sizeof value);
    return text;
  };
  contains(said(""), "0 bytes that are no message: they end before the 16 bytes of a head");
  contains(said(valid.substr(0, 15)), "15 bytes that are no message");
  contains(said(with(0, 1)), "they begin with 1, expected");
  contains(said(with(4, 0)), "their kind is 0, expected 1 to 6");
  contains(said(with(4, 99)), "their kind is 99, expected 1 to 6");
  contains(said(with(12, UINT32_MAX)), "they announce 4294967295 items, and 0 bytes follow");
  contains(said(valid + "12345678"), "they announce 0 items, and 8 bytes follow");
  contains(said(encode(ranges(Message::kTaken, 0, {{1, 1}}))), "has no items, and they have 1");
  contains(said(encode(ranges(Message::kScatter, 0, {{4096, 0}}))), "they name 0 bytes at 4096");
  contains(said(encode(ranges(Message::kFetch, 0, {{UINT64_MAX, 2}}))),
           "they name 2 bytes at 18446744073709551615");
  contains(said(encode(ranges(Message::kTaken, 0, {}))), "cluster 9 took chunk 0, which was not filled");
  contains(said(encode(ranges(Message::kFilled, 1, {}))), "filled chunk 1, which nobody waits for");
  contains(said(encode(ranges(Message::kScatter, 2, {}))), "filled chunk 2, which is not its to fill");
  contains(said(encode(ranges(Message::kScatter, UINT32_MAX, {}))), "which is not its to fill");
  contains(said(encode(ranges(Message::kFetch, 2, {}))),
           "asks for chunk 2, which it has asked for or does not");
  contains(said(encode(ranges(Message::kFetch, 0, {}))), "asks for nothing");
  contains(said(encode(ranges(Message::kReach, 2, {}))), "says 2 of whether it reaches memory here");
  contains(said(encode(Message{Message::kWords, 0, {}, {{64, 1}}})),
           "named 8 bytes at 64, which it was not offered");
  {
    End end;
    const uint64_t at = address_of(end.memory);
    contains(end.refusal_of(encode(ranges(Message::kScatter, 0, {{at, kChunk}, {at, 1}}))),
             "sent more than a chunk holds");
  }
  {
    End end;
    const uint64_t at = address_of(end.memory);
    contains(end.refusal_of(encode(ranges(Message::kFetch, 0, {{at, kChunk}, {at, 1}}))),
             "asks for more than a chunk holds");
  }
  {
    End end;
    contains(end.refusal_of(encode(ranges(Message::kFetch, 1, {{address_of(end.memory) + kBytes - 1, 2}}))),
             "which it was not offered");
  }
}

TEST(pump_tells_the_peer_while_it_reaches_its_memory_directly) {
  bool was_told_first = false;
  End end(kChunk, 16, true);
  aclrtStream stream = end.stream();
  const auto said = [&](uint32_t chunk) {
    const auto sent = end.wire->messages();
    return std::any_of(sent.begin(), sent.end(), [&](const Message& message) {
      return message.kind == Message::kReach && message.chunk == chunk;
    });
  };
  end.wire->finishes = false;
  end.wire->at_post = [&](const std::vector<engine::Piece>&) {
    was_told_first = !end.wire->sent.empty() && end.wire->sent.front().kind == Message::kReach;
  };
  end.push(stream, 0, 4);
  CHECK_EQUAL(end.transport->flush(stream), 0);
  CHECK(becomes([&] { return end.wire->requests() == 1; }));
  CHECK(was_told_first);
  CHECK(said(1));
  CHECK(!said(0));

  {
    std::lock_guard lock(end.wire->mutex);
    end.wire->finishes = true;
  }
  CHECK(becomes([&] { return said(0); }));
}

TEST(pump_refuses_addresses_that_make_no_sense) {
  const auto said = [](const std::string& text) {
    std::string why;
    return decode_address(text, &why) ? std::string("taken") : why;
  };
  CHECK_EQUAL(said(encode(Address{4096, kChunk, 4, "x"})), "taken");
  CHECK_EQUAL(said("short"), "5 bytes, expected at least 24");
  for (const Address& bad : {Address{4096, 0, 4, ""}, Address{4096, kChunk, 65, ""},
                             Address{4096, uint64_t{1} << 40, 4, ""}, Address{UINT64_MAX - 5, kChunk, 4, ""}})
    CHECK(said(encode(bad)).find("chunks of") != std::string::npos);
  CHECK(said(std::string(24, '\7')).find("it begins with") != std::string::npos);
}

// 40 links that a peer says everything possible to, and what it might say by the thousand.
TEST(pump_survives_messages_that_nobody_would_send) {
  for (uint64_t seed = 0; seed < 40; ++seed) message_oracle::try_case(seed);
}

}  // namespace
}  // namespace datadist
