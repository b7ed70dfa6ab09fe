// A transport over an engine that is given, not chosen by its name.
#pragma once

#include <memory>

#include "transport/engine/engine.h"
#include "transport/engine/engine_transport.h"

namespace datadist::engine {

std::unique_ptr<Transport> make_transport(Settings settings, std::unique_ptr<Engine> engine);

}  // namespace datadist::engine
