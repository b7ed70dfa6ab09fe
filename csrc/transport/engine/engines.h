// The engines that this build knows, by the names that links are asked for them under.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "transport/engine/engine.h"

namespace datadist::engine {

struct Make {
  int device = 0;
  std::string listen_ip;                       // under which peers reach this host; empty: any
  std::map<std::string, std::string> options;  // the engine's own, for those that have any
  // Where the peer may reach memory here in other ways than by a network.
  bool is_peer_on_this_host = true;
  bool is_peer_in_this_super_pod = true;
};

struct Kind {
  const char* name;
  // "" where it can be made in this process, else what is missing and how to get it. Asked before any link is
  // made; may load the engine's libraries.
  std::string (*why_not)();
  std::unique_ptr<Engine> (*make)(const Make& about);
  bool crosses_hosts;
};

const std::vector<Kind>& kinds();
const Kind* find_kind(const std::string& name);  // nullptr: there is none of that name

}  // namespace datadist::engine
