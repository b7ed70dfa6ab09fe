#include "link/process.h"

#include <fstream>
#include <iterator>
#include <sstream>
#include <string>

#include "error.h"

namespace datadist {

// Field 22 of /proc/<pid>/stat, counted behind the command's closing parenthesis.
int64_t start_time_of(int pid) {
  std::ifstream file(join("/proc/", pid, "/stat"));
  std::string text((std::istreambuf_iterator<char>(file)), {});
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(text.substr(name_end + 1));
  std::string field;
  fields >> field;
  if (field == "Z" || field == "X") return 0;  // it has ended, only nobody has asked how
  for (int i = 4; i <= 22 && fields >> field; ++i) {
  }
  return field.empty() ? 0 : std::stoll(field);
}

}  // namespace datadist
