#include "acl/check.h"

#include "acl/acl_rt.h"
#include "error.h"

namespace datadist::acl {

std::string describe(const char* call, aclError code) {
  std::string name(call);
  name = name.substr(0, name.find('('));
  name = name.substr(name.find("aclrt") == std::string::npos ? 0 : name.find("aclrt"));
  const char* words = aclGetRecentErrMsg();
  const bool has_words = words != nullptr && *words != '\0';
  return join(name, " returned ", code, has_words ? ": " : "", has_words ? words : "");
}

int64_t status_code(aclError code) {
  switch (code) {
    case 507046:
    case 507047:
      return kTimeout;
    case 207001:
    case 207018:
      return kOutOfMemory;
    case 207000:
      return kFeatureNotEnabled;
    case 507053:
    case 507057:
      return code;  // these two keep their identity in LLMStatusCode
    default:
      return kFailed;
  }
}

bool is_device_loss(aclError code) { return code == 507010 || code == 507899 || code == 507901; }

void raise(const char* call, aclError code) {
  if (is_device_loss(code)) throw DeviceLost(status_code(code), describe(call, code));
  throw Error(status_code(code), describe(call, code));
}

}  // namespace datadist::acl
