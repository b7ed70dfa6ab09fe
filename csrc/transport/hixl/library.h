// The shim in front of CANN's HIXL engine (csrc/hixl_shim), loaded when it is first asked for.
#pragma once

#include <string>

#include "hixl_shim/shim.h"

namespace datadist::hixl {

struct Library {
  decltype(&datadistHixlLoad) load = nullptr;
  decltype(&datadistHixlNew) create = nullptr;
  decltype(&datadistHixlDelete) destroy = nullptr;
  decltype(&datadistHixlInitialize) initialize = nullptr;
  decltype(&datadistHixlRegister) register_memory = nullptr;
  decltype(&datadistHixlDeregister) deregister_memory = nullptr;
  decltype(&datadistHixlConnect) connect = nullptr;
  decltype(&datadistHixlDisconnect) disconnect = nullptr;
  decltype(&datadistHixlPost) post = nullptr;
  decltype(&datadistHixlPoll) poll = nullptr;
  std::string why_not;  // empty: it can be used
};

const Library& library();

// The LLMStatusCode of a code of HIXL, and what it means.
int64_t status_code(uint32_t code);
std::string describe(const char* call, uint32_t code);

}  // namespace datadist::hixl
