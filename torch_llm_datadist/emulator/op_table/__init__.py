"""Which aten ops run on emulated tensors: a sweep over all of them, and the table it makes."""
