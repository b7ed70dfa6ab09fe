"""What the emulated machine can do, where that may change while a process runs.

Chosen at the start, by the environment: ``TORCH_LLM_DATADIST_EMULATE_PROFILE`` (A2, A3, 950), ``…_CANN``
(8.5, 9.0, 9.1), ``…_DRIVER`` (25.5, 26.0 …) and ``…_REFUSE_PEER_VALUES`` (1).
"""

from __future__ import annotations

import ctypes

from torch_llm_datadist.emulator import libraries, switch


def let_values_reach_peers(allowed: bool) -> None:
    """Whether value writes and waits of this process take addresses imported from another, from now on.

    It is not known yet what devices do. Where they refuse, the words of links travel by 8-byte copies.
    """
    if not switch.is_enabled():
        raise RuntimeError("emulation is off in this process, and a real NPU is what it is")
    libraries.runtime().emuLetValuesReachPeers(ctypes.c_int(allowed))
