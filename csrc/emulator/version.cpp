// What the emulated machine says it is: the product and driver of the profile, the CANN of this library.

#include "emulator/version.h"

#include <cstdio>
#include <cstring>

#include "emulator/entry.h"
#include "emulator/runtime.h"

namespace emu {
namespace {

struct Version {
  int major;
  int minor;
  const char* release;  // of the third part: a candidate's name, or a number
};

Version cann() { return {cann_level.major, cann_level.minor, "0"}; }

Version driver() {
  const Profile& profile = Runtime::get().config.profile;
  return {profile.driver_major, profile.driver_minor, profile.driver_major >= 26 ? "RC1" : "0"};
}

Version version_of(const char* package) { return std::strcmp(package, "driver") == 0 ? driver() : cann(); }

std::string words(const Version& version) {
  return text("%d.%d.%s", version.major, version.minor, version.release);
}

}  // namespace
}  // namespace emu

using namespace emu;

const char* aclrtGetSocName() { return Runtime::get().config.profile.soc_name(); }

aclError aclsysGetCANNVersion(aclCANNPackageName name, aclCANNPackageVersion* version) {
  return ENTER(aclsysGetCANNVersion, {
    *not_null(version, "version") = {};
    if (name < ACL_PKG_NAME_CANN || name > ACL_PKG_NAME_DRIVER) {
      fail(ACL_ERROR_INVALID_PARAM, "package %d does not exist", name);
    }
    const Version is = name == ACL_PKG_NAME_DRIVER ? driver() : cann();
    std::snprintf(version->version, sizeof version->version, "%s", words(is).c_str());
    std::snprintf(version->majorVersion, sizeof version->majorVersion, "%d", is.major);
    std::snprintf(version->minorVersion, sizeof version->minorVersion, "%d", is.minor);
    std::snprintf(version->releaseVersion, sizeof version->releaseVersion, "%s", is.release);
    return ACL_SUCCESS;
  });
}

aclError aclsysGetVersionStr(char* pkgName, char* versionStr) {
  return ENTER(aclsysGetVersionStr, {
    not_null(versionStr, "versionStr");
    const std::string is = words(version_of(not_null(pkgName, "pkgName")));
    std::snprintf(versionStr, ACL_PKG_VERSION_MAX_SIZE, "%s", is.c_str());
    return ACL_SUCCESS;
  });
}

aclError aclsysGetVersionNum(char* pkgName, int32_t* versionNum) {
  return ENTER(aclsysGetVersionNum, {
    const Version is = version_of(not_null(pkgName, "pkgName"));
    *not_null(versionNum, "versionNum") = is.major * 1'000'000 + is.minor * 10'000;
    return ACL_SUCCESS;
  });
}

aclError aclrtGetVersion(int32_t* majorVersion, int32_t* minorVersion, int32_t* patchVersion) {
  return ENTER(aclrtGetVersion, {
    // Of the interface, not of CANN: 8.5 brought 1.16, 9.0 and 9.1 have 1.17.
    *not_null(majorVersion, "majorVersion") = ACL_MAJOR_VERSION;
    *not_null(minorVersion, "minorVersion") = cann_level.major < 9 ? 16 : ACL_MINOR_VERSION;
    *not_null(patchVersion, "patchVersion") = ACL_PATCH_VERSION;
    return ACL_SUCCESS;
  });
}
