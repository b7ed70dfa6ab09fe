#include "emulator_aten/shape_key.h"

#include <cstring>

namespace emu_aten {
namespace {

class Key {
 public:
  explicit Key(std::string& bytes) : bytes_(bytes) {}

  bool add(const c10::IValue& value) {
    if (value.isTensor()) return add(value.toTensor());
    if (value.isNone()) return put('n');
    if (value.isInt()) return put('i', value.toInt());
    if (value.isBool()) return put('b', value.toBool());
    if (value.isDouble()) return put('d', value.toDouble());
    if (value.isComplexDouble()) return put('c', value.toComplexDouble());
    if (value.isIntList()) return add_list('I', value.toIntVector());
    if (value.isDoubleList()) return add_list('D', value.toDoubleVector());
    if (value.isBoolList()) {
      const auto list = value.toBoolList();
      put('B', list.size());
      for (const bool element : list) put('b', element);
      return true;
    }
    if (value.isString()) {
      put('s', value.toStringRef().size());
      bytes_.append(value.toStringRef());
      return true;
    }
    if (value.isDevice()) return put('v', value.toDevice().type());
    if (value.isGenerator()) return put('g');
    if (value.isTensorList() || value.isOptionalTensorList() || value.isList()) {
      const auto elements = value.toListRef();
      put('L', elements.size());
      for (const c10::IValue& element : elements) {
        if (!add(element)) return false;
      }
      return true;
    }
    return false;
  }

 private:
  bool add(const at::Tensor& tensor) {
    if (!tensor.defined()) return put('u');
    const c10::TensorImpl* impl = tensor.unsafeGetTensorImpl();
    if (impl->layout() != c10::kStrided) return false;
    // A number in tensor's clothes takes part in type promotion in its own way.
    put(impl->is_wrapped_number() ? 'w' : 't', tensor.scalar_type());
    put(tensor.device().type() == c10::kCPU ? 'c' : 'd', tensor.dim());
    bytes_.append(reinterpret_cast<const char*>(tensor.sizes().data()), tensor.dim() * sizeof(int64_t));
    bytes_.append(reinterpret_cast<const char*>(tensor.strides().data()), tensor.dim() * sizeof(int64_t));
    return true;
  }

  template <typename T>
  bool add_list(char kind, const std::vector<T>& values) {
    put(kind, values.size());
    bytes_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
    return true;
  }

  bool put(char kind) {
    bytes_.push_back(kind);
    return true;
  }

  template <typename T>
  bool put(char kind, const T& value) {
    put(kind);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(T));
    return true;
  }

  std::string& bytes_;
};

}  // namespace

bool shape_key(Arguments arguments, std::string& key) {
  key.clear();
  Key writer(key);
  for (const c10::IValue& argument : arguments) {
    if (!writer.add(argument)) return false;
  }
  return true;
}

}  // namespace emu_aten
