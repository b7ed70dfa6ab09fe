// What the peer says: each message is checked against what it may name before anything of it is done.
#include <algorithm>
#include <cstring>

#include "error.h"
#include "transport/engine/pump.h"

namespace datadist::engine {
namespace {

constexpr int kMessagesPerPass = 64;

}  // namespace

bool Pump::take_messages() {
  int taken = 0;
  for (; taken < kMessagesPerPass; ++taken) {
    const auto text = engine_->receive();
    if (!text) break;
    std::string why;
    auto message = decode(*text, &why);
    require(message.has_value(), kFailed, settings_.peer, " sent ", text->size(),
            " bytes that are no message: ", why);
    switch (message->kind) {
      case Message::kWords:
        on_words(*message);
        break;
      case Message::kScatter:
        on_scatter(*message);
        break;
      case Message::kTaken:
        on_taken(*message);
        break;
      case Message::kFetch:
        on_fetch(std::move(*message));
        break;
      case Message::kFilled:
        on_filled(*message);
        break;
      case Message::kReach:
        on_reach(*message);
        break;
    }
  }
  return taken > 0;
}

Reach Pump::require_named(Named what, const Range& range) const {
  const auto reach = settings_.named_by_peer(what, reinterpret_cast<const char*>(range.address), range.bytes);
  require(reach.has_value(), kFailed, settings_.peer, " named ", range.bytes, " bytes at ", range.address,
          ", which it was not offered");
  return *reach;
}

void Pump::on_words(const Message& message) {
  for (const WordWrite& word : message.words) {
    require_named(Named::kWord, {word.address, sizeof word.value});
    copies_->write_word(reinterpret_cast<void*>(word.address), word.value);
  }
}

void Pump::on_scatter(const Message& message) {
  require(message.chunk < settings_.chunks && busy_pushed_.insert(message.chunk).second, kFailed,
          settings_.peer, " filled chunk ", message.chunk, ", which is not its to fill");
  const char* from = pushed_chunk(message.chunk);
  size_t left = settings_.chunk_bytes;
  bool has_device = false;
  for (const Range& range : message.ranges) {
    require(range.bytes <= left, kFailed, settings_.peer, " sent more than a chunk holds");
    left -= range.bytes;
    auto* const to = reinterpret_cast<char*>(range.address);
    if (require_named(Named::kWritten, range) == Reach::kDevice) {
      copies_->to_device(to, from, range.bytes);
      has_device = true;
    } else {
      std::memcpy(to, from, range.bytes);
    }
    from += range.bytes;
  }
  scattered_.push_back({has_device ? copies_->mark_in() : 0, message.chunk});
}

bool Pump::confirm_scattered() {
  bool did = false;
  while (!scattered_.empty() && copies_->is_in_past(scattered_.front().at)) {
    const uint32_t chunk = scattered_.front().chunk;
    scattered_.pop_front();
    busy_pushed_.erase(chunk);
    say({Message::kTaken, chunk, {}, {}});
    did = true;
  }
  return did;
}

void Pump::on_taken(const Message& message) {
  const auto parcel = std::find_if(parcels_.begin(), parcels_.end(), [&](const Parcel& one) {
    return one.kind == Parcel::kPush && one.state == Parcel::kAwaited && one.remote_chunk == message.chunk;
  });
  require(parcel != parcels_.end(), kFailed, settings_.peer, " took chunk ", message.chunk,
          ", which was not filled");
  credits_.push_back(message.chunk);
  end(*parcel);
  parcels_.erase(parcel);
}

void Pump::on_fetch(Message message) {
  require(message.chunk < peer_.chunks && serving_.insert(message.chunk).second, kFailed, settings_.peer,
          " asks for chunk ", message.chunk, ", which it has asked for or does not have");
  const size_t most = std::min<size_t>(settings_.chunk_bytes, peer_.chunk_bytes);
  size_t bytes = 0;
  for (const Range& range : message.ranges) {
    require(range.bytes <= most - bytes, kFailed, settings_.peer, " asks for more than a chunk holds");
    bytes += range.bytes;
    require_named(Named::kRead, range);
  }
  require(bytes > 0, kFailed, settings_.peer, " asks for nothing");
  to_serve_.push_back(std::move(message));
}

bool Pump::serve() {
  bool did = false;
  for (; !to_serve_.empty() && !free_out_.empty(); to_serve_.pop_front()) {
    Parcel parcel;
    parcel.kind = Parcel::kServe;
    parcel.remote_chunk = to_serve_.front().chunk;
    parcel.chunk = take_last(&free_out_);
    for (const Range& range : to_serve_.front().ranges) {
      const Reach reach = require_named(Named::kRead, range);  // again: it may have been withdrawn since
      parcel.moves.push_back({Way::kWrite, reinterpret_cast<char*>(range.address), 0, range.bytes,
                              reach == Reach::kDevice, true});
      parcel.bytes += range.bytes;
    }
    gather(parcel, own_chunk(parcel.chunk));
    parcels_.push_back(std::move(parcel));
    did = true;
  }
  return did;
}

void Pump::on_filled(const Message& message) {
  const auto parcel = std::find_if(parcels_.begin(), parcels_.end(), [&](const Parcel& one) {
    return one.kind == Parcel::kPull && one.state == Parcel::kAwaited && one.chunk == message.chunk;
  });
  require(parcel != parcels_.end(), kFailed, settings_.peer, " filled chunk ", message.chunk,
          ", which nobody waits for");
  scatter_pull(*parcel);
}

void Pump::on_reach(const Message& message) {
  require(message.chunk <= 1, kFailed, settings_.peer, " says ", message.chunk,
          " of whether it reaches memory here, expected 0 or 1");
  peer_reaches_ = message.chunk == 1;
}

void Pump::scatter_pull(Parcel& parcel) {
  parcel.state = Parcel::kScattering;
  parcel.copied_at = 0;
  if (has_given_up(parcel.channel)) return;
  const char* from = pulled_chunk(parcel.chunk);
  bool has_device = false;
  for (const Move& move : parcel.moves) {
    if (move.local_is_device) {
      copies_->to_device(move.local, from, move.bytes);
      has_device = true;
    } else {
      std::memcpy(move.local, from, move.bytes);
    }
    from += move.bytes;
  }
  if (has_device) parcel.copied_at = copies_->mark_in();
}

void Pump::say(Message message) {
  Message* const last = outgoing_.empty() ? nullptr : &outgoing_.back();
  const bool joins = last != nullptr && last->kind == Message::kWords && message.kind == Message::kWords &&
                     last->words.size() < most_ranges_;
  if (joins) {
    last->words.push_back(message.words.front());
  } else {
    outgoing_.push_back(std::move(message));
  }
}

void Pump::send_all() {
  for (; !outgoing_.empty(); outgoing_.pop_front()) engine_->send(encode(outgoing_.front()));
}

}  // namespace datadist::engine
