#include "emulator/stack.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <execinfo.h>

#include <cstdlib>
#include <cstring>

#include "emulator/error.h"
#include "emulator/runtime.h"

namespace emu {
namespace {

constexpr int kMostFrames = 32;
constexpr int kMostPythonFrames = 16;

// The interpreter, if this process has one: nothing here is linked to it.
struct Python {
  using Object = void*;
  int (*holds_gil)() = nullptr;
  Object (*frame)() = nullptr;
  Object (*back)(Object) = nullptr;
  Object (*code)(Object) = nullptr;
  int (*line)(Object) = nullptr;
  Object (*attribute)(Object, const char*) = nullptr;
  const char* (*utf8)(Object) = nullptr;
  void (*release)(Object) = nullptr;
  int (*is_initialised)() = nullptr;

  static const Python& get() {
    static const Python python = [] {
      Python found;
      load(found.holds_gil, "PyGILState_Check");
      load(found.frame, "PyEval_GetFrame");
      load(found.back, "PyFrame_GetBack");
      load(found.code, "PyFrame_GetCode");
      load(found.line, "PyFrame_GetLineNumber");
      load(found.attribute, "PyObject_GetAttrString");
      load(found.utf8, "PyUnicode_AsUTF8");
      load(found.release, "Py_DecRef");
      load(found.is_initialised, "Py_IsInitialized");
      return found;
    }();
    return python;
  }

  bool is_usable() const {
    return holds_gil && frame && back && code && line && attribute && utf8 && release && is_initialised &&
           is_initialised() != 0 && holds_gil() != 0;
  }

  std::string attribute_text(Object of, const char* name) const {
    Object value = attribute(of, name);
    if (value == nullptr) return "?";
    const char* text = utf8(value);
    std::string copy = text == nullptr ? "?" : text;
    release(value);
    return copy;
  }

 private:
  template <class Function>
  static void load(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
  }
};

std::string python_frames() {
  const Python& python = Python::get();
  if (!python.is_usable()) return {};
  std::string out;
  Python::Object frame = python.frame();  // borrowed, unlike those behind it
  bool is_owned = false;
  for (int i = 0; frame != nullptr && i < kMostPythonFrames; ++i) {
    Python::Object code = python.code(frame);
    out += text("%s:%d in %s\n", python.attribute_text(code, "co_filename").c_str(), python.line(frame),
                python.attribute_text(code, "co_name").c_str());
    python.release(code);
    Python::Object next = python.back(frame);
    if (is_owned) python.release(frame);
    frame = next;
    is_owned = true;
  }
  if (frame != nullptr && is_owned) python.release(frame);
  return out;
}

const char* file_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash == nullptr ? path : slash + 1;
}

// The library that this code is in.
const void* own_base() {
  static const void* const base = [] {
    Dl_info about{};
    dladdr(reinterpret_cast<const void*>(&file_name), &about);
    return const_cast<const void*>(about.dli_fbase);
  }();
  return base;
}

bool look_up(void* frame, Dl_info& about) { return dladdr(frame, &about) != 0 && about.dli_fname != nullptr; }

std::string readable(const char* symbol) {
  int status = 0;
  char* plain = abi::__cxa_demangle(symbol, nullptr, nullptr, &status);
  std::string out = status == 0 && plain != nullptr ? plain : symbol;
  std::free(plain);
  return out;
}

}  // namespace

std::shared_ptr<const Stack> Stack::here() {
  static const Config& config = Runtime::get().config;
  if (!config.leaks && !config.stacks) [[likely]]
    return nullptr;
  auto stack = std::make_shared<Stack>();
  void* frames[kMostFrames];
  const int count = backtrace(frames, kMostFrames);
  Dl_info about{};
  int first = 0;
  while (first < count && look_up(frames[first], about) && about.dli_fbase == own_base()) ++first;
  stack->frames_.assign(frames + first, frames + count);
  if (config.stacks) stack->python_ = python_frames();
  return stack;
}

bool Stack::is_shown() { return Runtime::get().config.stacks; }

std::string Stack::maker() const {
  Dl_info about{};
  if (frames_.empty() || !look_up(frames_.front(), about)) return "unknown";
  return file_name(about.dli_fname);
}

std::string Stack::text(const std::string& indent) const {
  std::string out;
  for (size_t begin = 0, end; (end = python_.find('\n', begin)) != std::string::npos; begin = end + 1) {
    out += indent + python_.substr(begin, end - begin) + "\n";
  }
  for (void* frame : frames_) {
    Dl_info about{};
    if (!look_up(frame, about)) {
      out += indent + emu::text("%p\n", frame);
      continue;
    }
    const auto offset = static_cast<size_t>(static_cast<char*>(frame) - static_cast<char*>(about.dli_fbase));
    out += indent + emu::text("%s+0x%zx", file_name(about.dli_fname), offset);
    if (about.dli_sname != nullptr) out += " " + readable(about.dli_sname);
    out += "\n";
  }
  return out;
}

}  // namespace emu
