"""What both workers have: a device, the model, blocks for its KV cache, an LLMDataDist that knows them."""

import time
from collections.abc import Sequence

import torch
import torch_npu

import torch_llm_datadist as datadist
from torch_llm_datadist.demo.channel import Channel, Inbox
from torch_llm_datadist.demo.forwards import forwards_for
from torch_llm_datadist.demo.model import allocate_blocks, build_model
from torch_llm_datadist.demo.options import Options
from torch_llm_datadist.errors import NotYetLinkError

CLUSTER_IDS = {"prefill": 1, "decode": 2}
DEVICES = {"prefill": 0, "decode": 1}
CACHE_MODEL_ID = 0
LINK_TIMEOUT_MS = 60_000  # a machine may be busy with other things
# A transfer's deadline covers the prefill that makes its layers. A lost peer is noticed long before.
TRANSFER_TIMEOUT_S = 120.0


class PeerLostError(Exception):
    """The other worker died, froze or gave up; this one ends and says so."""


class Engine:
    """One worker's half of the demo, up to the point where prefill and decode differ."""

    def __init__(self, role: str, options: Options, channel: Channel, inbox: Inbox) -> None:
        self.role = role
        self.peer_role = "decode" if role == "prefill" else "prefill"
        self.options = options
        self.channel = channel
        self.inbox = inbox
        self.device = f"npu:{DEVICES[role]}"
        torch_npu.npu.set_device(self.device)
        self.model = build_model(options.shape, self.device)
        self.forwards = forwards_for(self.model, options.mode, options.backend)

        self.datadist = datadist.LLMDataDist(
            datadist.LLMRole.PROMPT if role == "prefill" else datadist.LLMRole.DECODER, CLUSTER_IDS[role]
        )
        config = datadist.LLMConfig()
        config.device_id = DEVICES[role]
        config.enable_cache_manager = True
        config.enable_remote_cache_accessible = True
        config.transport = options.transport
        if role == "decode":
            config.listen_ip_info = f"{options.decode_ip}:0"
        self.datadist.init(config.generate_options())
        num_blocks, self.block_ids = options.scattered_blocks(role)
        self.cache = self.register_blocks(
            num_blocks, datadist.BlocksCacheKey(CLUSTER_IDS[role], CACHE_MODEL_ID)
        )
        self.blocks = self.cache.tensors
        self.status = torch.zeros(1, dtype=torch.int32, device=self.device)
        self.binding = datadist.Binding(device=DEVICES[role], layers=range(options.shape.layers))

    def tell_linked(self) -> None:
        """What the link goes over, too."""
        transports = [link.transport for link in self.datadist.links() if link.state == "linked"]
        self.channel.send("linked", transport=transports[0] if transports else "")

    @property
    def peer_cluster_id(self) -> int:
        return CLUSTER_IDS[self.peer_role]

    def register_blocks(self, num_blocks: int, key: datadist.BlocksCacheKey | None) -> datadist.Cache:
        """Blocks for the KV cache; peers know them by the key, and not at all without one."""
        blocks = allocate_blocks(self.options.shape, num_blocks, self.device)
        desc = datadist.CacheDesc(len(blocks), list(blocks[0].shape), datadist.DataType.DT_FLOAT)
        return self.datadist.cache_manager.register_blocks_cache(
            desc, blocks, key, remote_accessible=key is not None
        )

    def bind(self, transfers: Sequence[datadist.Task | int]) -> None:
        """Joins the transfers to the next forward. A layer dropped on purpose is named: none waits for it."""
        dropped = [self.options.sabotaged_layer] if self.options.sabotage == "drop-layer" else []
        self.binding.bind(transfers, open_layers=dropped, timeout_s=TRANSFER_TIMEOUT_S)

    def wait_for_stream(self) -> None:
        """Waits until the stream has done all that is queued, but not on behalf of a peer that is lost."""
        done = torch_npu.npu.Event()
        done.record()
        while not done.query():
            self.check_peer()
            time.sleep(0.001)

    def check_status(self) -> None:
        """Waits for the forward, and ends this worker if one of its transfers failed."""
        self.wait_for_stream()
        code = int(self.status.item())
        if code == 0:
            return
        name = datadist.LLMStatusCode(code & 0xFFFFFFFF).name
        # The stream learns of a lost link a moment before the link's owner, who knows the reason.
        deadline = time.monotonic() + 1
        while name == "LLM_NOT_YET_LINK" and time.monotonic() < deadline:
            self.check_peer()
            time.sleep(0.01)
        raise PeerLostError(f"a transfer from or to its peer {self.peer_role} failed: {name}")

    def check_peer(self) -> None:
        """Ends this worker if the library's watchdog has found its peer dead or frozen."""
        try:
            self.datadist.link_id(self.peer_cluster_id)
        except NotYetLinkError as error:
            # Of the library's message only why the link ended: this worker asked for nothing but that.
            reason = str(error).removeprefix(f"link_id: there is no link to cluster {self.peer_cluster_id}: ")
            reason = reason.partition(", expected ")[0]
            raise PeerLostError(f"lost its peer {self.peer_role}: {reason}") from error
