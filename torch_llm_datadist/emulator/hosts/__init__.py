"""Several hosts on one machine, joined by a network that can be slow, lossy or cut.

>>> with Lab("prefill", "decode") as lab:  # doctest: +SKIP
...     server = lab["decode"].popen([sys.executable, "decode.py", lab["decode"].address])
...     lab.network.shape(delay_s=0.02, loss=0.001)
...     lab.network.cut("prefill", "decode")

Each host is a network namespace with one interface and an address of its own. Processes of different hosts
have different host identities, so they share no memory, and UCX is given TCP only. Packets between hosts pass
through one process, which delays, drops or holds them. Needs user namespaces and TUN devices; no privilege,
and no Debian package.
"""

from torch_llm_datadist.emulator.hosts.lab import Counts, Host, HostsUnavailableError, Lab, Network

__all__ = ["Counts", "Host", "HostsUnavailableError", "Lab", "Network"]
