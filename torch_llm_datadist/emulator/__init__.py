"""An Ascend NPU out of nothing but a CPU: the released torch_npu wheel runs on an emulated ACL runtime.

Switch it on before anything imports torch: by ``TORCH_LLM_DATADIST_EMULATE=1`` in the environment, by
``enable()``, or by ``python -m torch_llm_datadist run --emulate script.py``. Importing this package imports
neither torch nor torch_npu.

Modes, each a variable of the environment that the process starts with (``TORCH_LLM_DATADIST_EMULATE_…``):

========== ==================================================================================================
LAZY=1     nothing runs until somebody waits for it or asks: a wait that is missing is seen each time
SEED=n     streams stop for random moments, large copies run in pieces; the same seed decides the same
POISON=1   each tensor is an allocation of its own: a use after free or past the end is a failing task
LEAKS=1    what was not given back is listed on stderr at the end, torch_npu's own pools apart
STACKS=1   messages about bad addresses, and that list, say where memory was allocated and freed
TIME=…     ``simulated``: tasks carry modelled durations, nobody waits for them; see ``emulator.clock``
========== ==================================================================================================
"""

from torch_llm_datadist.emulator import clock
from torch_llm_datadist.emulator.delay import delay_stream
from torch_llm_datadist.emulator.faults import calls, fail_next, fail_task, set_bandwidth, set_task_delay
from torch_llm_datadist.emulator.presence import choose, has_npu
from torch_llm_datadist.emulator.profile import let_values_reach_peers
from torch_llm_datadist.emulator.switch import disable, enable, is_enabled, is_wanted

__all__ = [
    "calls",
    "choose",
    "clock",
    "delay_stream",
    "disable",
    "enable",
    "fail_next",
    "fail_task",
    "has_npu",
    "is_enabled",
    "is_wanted",
    "let_values_reach_peers",
    "set_bandwidth",
    "set_task_delay",
]
