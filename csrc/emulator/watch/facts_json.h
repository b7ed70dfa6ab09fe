#pragma once

#include <string>

#include "emulator/facts.h"
#include "emulator/watch/places.h"

namespace emu::watch {

// What a trace says of a task, as JSON: the inside of the object.
std::string facts_json(const TaskFacts& facts);
std::string spot_json(const Spot& spot);
std::string quoted(const std::string& plain);

}  // namespace emu::watch
