// What the emulated machine says it is: an Atlas A2 with CANN 9.1.0 and a driver that goes with it.

#include <cstdio>
#include <cstring>

#include "emulator/entry.h"

namespace emu {
namespace {

constexpr const char* kCann = "9.1.0";
constexpr const char* kDriver = "26.0.RC1";

bool is_driver(const char* package) { return std::strcmp(package, "driver") == 0; }

}  // namespace
}  // namespace emu

using namespace emu;

const char* aclrtGetSocName() { return "Ascend910B3"; }

aclError aclsysGetCANNVersion(aclCANNPackageName name, aclCANNPackageVersion* version) {
  return ENTER(aclsysGetCANNVersion, {
    *not_null(version, "version") = {};
    const bool driver = name == ACL_PKG_NAME_DRIVER;
    if (name < ACL_PKG_NAME_CANN || name > ACL_PKG_NAME_DRIVER) {
      fail(ACL_ERROR_INVALID_PARAM, "package %d does not exist", name);
    }
    std::snprintf(version->version, sizeof version->version, "%s", driver ? kDriver : kCann);
    std::snprintf(version->majorVersion, sizeof version->majorVersion, "%s", driver ? "26" : "9");
    std::snprintf(version->minorVersion, sizeof version->minorVersion, "%s", driver ? "0" : "1");
    std::snprintf(version->releaseVersion, sizeof version->releaseVersion, "%s", driver ? "RC1" : "0");
    return ACL_SUCCESS;
  });
}

aclError aclsysGetVersionStr(char* pkgName, char* versionStr) {
  return ENTER(aclsysGetVersionStr, {
    not_null(versionStr, "versionStr");
    std::snprintf(versionStr, ACL_PKG_VERSION_MAX_SIZE, "%s",
                  is_driver(not_null(pkgName, "pkgName")) ? kDriver : kCann);
    return ACL_SUCCESS;
  });
}

aclError aclsysGetVersionNum(char* pkgName, int32_t* versionNum) {
  return ENTER(aclsysGetVersionNum, {
    *not_null(versionNum, "versionNum") = is_driver(not_null(pkgName, "pkgName")) ? 26'00'00'00 : 9'01'00'00;
    return ACL_SUCCESS;
  });
}

aclError aclrtGetVersion(int32_t* majorVersion, int32_t* minorVersion, int32_t* patchVersion) {
  return ENTER(aclrtGetVersion, {
    *not_null(majorVersion, "majorVersion") = ACL_MAJOR_VERSION;
    *not_null(minorVersion, "minorVersion") = ACL_MINOR_VERSION;
    *not_null(patchVersion, "patchVersion") = ACL_PATCH_VERSION;
    return ACL_SUCCESS;
  });
}
