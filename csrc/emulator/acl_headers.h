#pragma once

// The ACL headers mark their functions as exported only when this is set; we build with hidden visibility.
#define FUNC_VISIBILITY
#include "acl/acl.h"
#include "acl/acl_op_compiler.h"
#include "acl/error_codes/rt_error_codes.h"
