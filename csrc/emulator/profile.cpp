#include "emulator/profile.h"

#include <strings.h>

#include <cstdio>

#include "emulator/environment.h"

namespace emu {
namespace {

struct Name {
  const char* name;
  Profile::Product product;
};

constexpr Name kProducts[] = {
    {"A2", Profile::Product::A2},        {"A3", Profile::Product::A3},
    {"950", Profile::Product::P950PR},   {"950PR", Profile::Product::P950PR},
    {"950DT", Profile::Product::P950DT},
};

Profile::Product product_named(const char* variable) {
  const char* value = given(variable);
  if (value == nullptr) return Profile::Product::A2;
  for (const Name& known : kProducts) {
    if (strcasecmp(known.name, value) == 0) return known.product;
  }
  give_up(variable, value, "A2, A3, 950, 950PR or 950DT");
}

}  // namespace

Profile Profile::from_environment() {
  Profile profile;
  profile.product = product_named("TORCH_LLM_DATADIST_EMULATE_PROFILE");
  constexpr const char* kDriver = "TORCH_LLM_DATADIST_EMULATE_DRIVER";
  if (const char* value = given(kDriver)) {
    char rest = '\0';
    if (std::sscanf(value, "%d.%d%c", &profile.driver_major, &profile.driver_minor, &rest) != 2) {
      give_up(kDriver, value, "a version of two numbers: 25.5 or 26.0, say");
    }
  }
  constexpr const char* kRefuse = "TORCH_LLM_DATADIST_EMULATE_REFUSE_PEER_VALUES";
  if (const char* value = given(kRefuse)) {
    if ((value[0] != '0' && value[0] != '1') || value[1] != '\0') give_up(kRefuse, value, "0 or 1");
    profile.values_reach_peers = value[0] == '0';
  }
  return profile;
}

const char* Profile::soc_name() const {
  switch (product) {
    case Product::A3:
      return "Ascend910_9391";
    case Product::P950PR:
      return "Ascend950PR_9599";
    case Product::P950DT:
      return "Ascend950DT_9591";
    default:
      return "Ascend910B3";
  }
}

}  // namespace emu
