// Of a file whose functions take or return tensors. The headers behind it are most of what such a file costs
// to compile, so they stay out of module.h.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include "python/module.h"
