"""The native core. Python above it validates and talks to peers; everything that moves bytes is below.

Codes are the integers of ``LLMStatusCode``. Errors are raised as the class of
``torch_llm_datadist.errors.class_for_code(code)``. All calls release the GIL while they wait.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

BUILT_FOR_TORCH_NPU: str

class Segment:
    """Where one tensor lies for a peer: an export handle of the segment, the offset in it, and the bare
    address, which an instance of the same process uses, and any peer where it is private host memory.
    ``kind``: 0 device, 1 shared host memory, 2 private host memory."""

    handle: bytes
    offset: int
    address: int
    kind: int
    def __init__(self, handle: bytes, offset: int, address: int, kind: int = 0) -> None: ...

class Instance:
    """One LLMDataDist in this process: its registered caches, its links and their watchdog."""

    def __init__(
        self,
        device: int,
        cluster_id: int,
        *,
        keep_alive_ms: int = 3000,
        transfer_timeout_ms: int = 1000,
        max_in_flight: int = 256,
        streams_per_link: int = 64,
        stream_budget: int = 1024,
        packed_staging_bytes: int = 67108864,
        stream_idle_ms: int = 5000,
        close_timeout_ms: int = 1000,
        staging_limit: int = 1 << 30,
        verifies: bool = False,
        engine_chunk_bytes: int = 1048576,
        engine_chunks: int = 8,
        listen_ip: str = "",
        hixl_options: Mapping[str, str] = ...,
    ) -> None: ...
    def close(self) -> None:
        """Ends every link, joins the threads and frees the streams. Idempotent."""

    # Caches of this instance. All tensors: contiguous, on the instance's device or all on the CPU.
    def register_cache(
        self,
        tensors: Sequence[Tensor],
        num_blocks: int,
        is_blocks: bool = True,
        receives: bool = True,
        is_offered: bool = True,
    ) -> int:
        """``num_blocks``: blocks, or batch entries of a contiguous cache, in each tensor. ``receives``:
        transfers may write into it. ``is_offered``: peers may reach it."""

    def export_cache(self, cache_id: int, link: int) -> list[Segment]:
        """As the peer of that link gets to know it."""

    def try_export_cache(self, cache_id: int) -> None:
        """Raises where a peer on this host could not get to know it."""

    def withdraw_cache(self, cache_id: int) -> None:
        """New transfers no longer find it; its memory stays held until `release_cache`."""

    def is_cache_in_use(self, cache_id: int) -> bool: ...
    def release_cache(self, cache_id: int) -> None: ...

    # Links. `open_link` makes this end and its page; `connect_link` maps the peer's and starts liveness.
    def open_link(
        self,
        peer_cluster_id: int,
        peer_name: str,
        peer_device: int,
        peer_pid: int,
        peer_start_time: int,
        in_this_process: bool,
        is_fenced: bool = False,
        is_on_this_host: bool = True,
        is_in_this_super_pod: bool = True,
        transport: str = "mapped",
    ) -> tuple[int, Segment]:
        """Returns (link, own control page). `link` is unique in the process, generation included."""

    def link_address(self, link: int) -> bytes:
        """What the peer's end of the transport needs for `connect_link`; b"" for "mapped"."""

    def connect_link(
        self,
        link: int,
        peer_link: int,
        peer_page: Segment,
        transport_address: bytes = b"",
        peer_proofs: Segment | None = None,
    ) -> None: ...
    def export_proofs(self, link: int) -> Segment | None:
        """Of an instance that verifies: where what the peer says of its tickets lands."""
    def add_remote_cache(
        self,
        link: int,
        cache_id: int,
        model_id: int | None,
        is_blocks: bool,
        num_blocks: int,
        tensor_bytes: Sequence[int],
        segments: Sequence[Segment],
        receives: bool = True,
    ) -> None:
        """Replicates one announced cache of the peer. A later one with the same model_id hides it."""

    def drop_remote_cache(self, link: int, cache_id: int) -> None:
        """New transfers no longer find it (LLM_KV_CACHE_NOT_EXIST)."""

    def is_remote_cache_in_use(self, link: int, cache_id: int) -> bool:
        """After `drop_remote_cache`: False once all transfers that touch it ended and it is unmapped."""

    def cut_off_of(self, link: int) -> Callable[[], bool]:
        """Tells, also once the link is gone, whether it took its peer's access to memory here away."""

    def link_status(self, link: int) -> tuple[bool, int, str]:
        """(is alive, code, the bare cause); code 0 and no cause while it is alive."""

    def link_counters(self, link: int) -> tuple[int, int, int]:
        """Of the transfers that this end began and that have ended: all, failed, bytes of the others. A link
        that is closed has none.
        """

    def close_link(self, link: int, patience_ms: int | None = None) -> None:
        """Lets running transfers end, for so long (None: ``close_timeout_ms``, or the timeout of a transfer
        where that is shorter), fails the rest (LLM_NOT_YET_LINK), tells the peer's watchdog, and frees
        streams and mappings. Idempotent."""

# Transfers. A one-shot handle through which a blocking call waits for an op that it has just called.
def plan_copies(
    tensors: Sequence[tuple[int, int, int, int, int]],
    src_blocks: Tensor,
    dst_blocks: Tensor,
    src_count: int,
    dst_count: int,
) -> list[tuple[int, int, int, int, int, int]]:
    """The copies that a transfer of these blocks queues; touches no memory. For tests and benchmarks.

    Args:
        tensors: (src address, dst address, bytes of a block, src slab, dst slab); slab 0: none known.
        src_count, dst_count: blocks of the two caches.

    Returns: (src, dst, width, height, src pitch, dst pitch) of each, in bytes.
    """

def choose_way(
    soc_name: str,
    layer: Sequence[tuple[int, int, int, int, int]],
    src_blocks: Tensor,
    dst_blocks: Tensor,
    num_blocks: int,
    layers: int,
    staging_bytes: int,
) -> tuple[bool, float, float, int, int, int]:
    """What the planner makes of a push that could be packed; touches no memory. For tests and benchmarks.

    Args:
        soc_name: as the runtime names the chip.
        layer: the tensors of one, as for `plan_copies`.

    Returns: (packs, microseconds direct, microseconds packed, copies direct, copies packed, kernels at
    either end of a packed one).
    """

def transfer_create() -> int: ...
def transfer_free(transfer: int) -> None:
    """For a handle that no op took, since it raised."""

def transfer_wait(transfer: int) -> tuple[int, str]:
    """Blocks until it ended (the watchdog sees to that) and frees the handle. Returns (code, detail)."""

def transfer_outcome(transfer: int, stream_timeout_ms: int) -> tuple[int, str, int]:
    """As ``transfer_wait``, and the number of a task while it failed and may still write, else 0. Fails
    when the caller's stream has not come to the transfer after so long."""

def prepare_push(
    link: int,
    model_id: int,
    cache: Sequence[Tensor],
    src_blocks: Tensor,
    dst_blocks: Tensor,
    src_layer: int,
    dst_layer: int,
    num_layers: int,
    tensors_per_layer: int,
    timeout_ms: int,
    cache_id: int | None = None,
    src_batch: int = 0,
    dst_batch: int = 0,
    has_ticket: bool = True,
    packed: bool | None = None,
) -> int:
    """Takes a slot for a push whose layers are released one by one through a binding. Returns the task.

    The peer's cache is named by ``cache_id`` where it is given. Without block ids at all a batch entry goes
    to a batch entry; with those of the destination only, it goes to these blocks. Without a ticket it takes
    no slot, and the receiver is not told of its layers.
    """

def task_ticket(task: int) -> int: ...
def task_state(task: int) -> tuple[bool, int, str]:
    """(has ended, code, detail)."""

def poll(
    tasks: Sequence[int], tickets: Sequence[int]
) -> tuple[list[tuple[bool, int, str]], list[tuple[bool, int, str]]]:
    """The states of many at once, in order; a number that is none has ended with a code."""

def task_wait(task: int) -> tuple[int, str]:
    """Blocks until it ended; (code, detail). One that was never bound ends by `task_cancel` or its link."""

def task_wait_for(task: int, timeout_ms: int) -> tuple[bool, int, str]:
    """Blocks until it ended, or so long; its state then."""

def task_wait_drained(task: int, timeout_ms: int) -> bool:
    """Blocks until it ended and nothing of it is queued any more; False after so long."""

def task_limit(task: int, timeout_ms: int) -> None:
    """It ends at the latest so long after its last layer was released, in place of its first deadline."""

def task_cancel(task: int, why: str) -> None:
    """Ends one that has not ended yet; the first reason is the one that counts."""

def task_discard(task: int) -> None: ...
def task_is_bound(task: int) -> bool: ...
def task_free(task: int) -> None: ...
def ticket_state(ticket: int) -> tuple[bool, int, str]: ...
def ticket_cancel(ticket: int, timeout_ms: int) -> tuple[bool, int, str]:
    """Gives it up, bound or not; its state once nothing of it is written any more, or after so long."""

def ticket_discard(ticket: int) -> None: ...
def binding_create(device: int, layers: Sequence[int], timeout_ms: int) -> int: ...
def binding_bind(
    binding: int, tasks: Sequence[int], tickets: Sequence[int], open_layers: Sequence[int], timeout_ms: int
) -> None: ...
def binding_unbind(binding: int) -> None: ...
def binding_destroy(binding: int) -> None: ...
def paged_open(tensors: Sequence[Tensor]) -> int:
    """The number by which `store_layer` and `read_layer` find these tensors; it keeps them alive."""

def paged_close(handle: int) -> None: ...
def tensor_from_address(address: int, shape: Sequence[int], dtype: object, device: int) -> Tensor:
    """A tensor over caller-owned memory of a device, or with device -1 of the host; keeps nothing alive."""

def wait_for_current_stream(device: int, timeout_ms: int, asked: str) -> bool:
    """Waits until the calling thread's current stream has got here; False after so long."""

def why_no_fabric(device: int) -> str:
    """ "" where device memory can be made that other hosts of the SuperPod map; else what is missing."""

def super_pod_of(device: int) -> int:
    """Its number; -1: the device is part of none."""

def allocate_fabric(device: int, bytes: int) -> Tensor:
    """uint8[bytes] on the device, which peers of the whole SuperPod can map."""

def allocate_shared_host(device: int, bytes: int) -> Tensor:
    """uint8[bytes] on the CPU, zeroed, page-locked, in a file that peers on this host can map."""

def require_not_forked(asked: str) -> None:
    """Raises ``LLM_FAILED`` in the child of a fork that came after the first instance."""

def is_forked_child() -> bool:
    """This is such a child: locks may be held for ever by threads that are not there."""

def ticket_expect(ticket: int, dst_blocks: Tensor, timeout_ms: int) -> tuple[bool, Segment | None]:
    """Says where the blocks of a ticket go if it travels packed: int64, on the CPU or on the link's device.

    Returns whether it may go packed at all, and this end's staging when the peer has not been told of it.
    """

def learn_staging(link: int, staging: Segment, bytes: int) -> None:
    """Where the peer wants packed transfers to land."""

def task_way(task: int) -> tuple[bool, bool]:
    """(the receiver expects it, it goes packed for certain)."""

def product_costs(soc_name: str) -> dict[str, float]:
    """The constants of the cost model, by the names of the emulator's table where it has them."""

# The rules of a link by themselves, without a device: for simulators of many links.
class SenderSlots:
    """Who may use a slot, and when it may be used again."""

    def __init__(self, max_in_flight: int) -> None: ...
    def take(self, peer: str) -> tuple[int, int]:
        """(slot, epoch); LLM_LINK_BUSY when all are in flight."""

    def drained(self, slot: int, epoch: int) -> bool:
        """Its last flag is written. True when that made it free; so with the other one."""

    def retired(self, slot: int, epoch: int) -> bool:
        """The receiver is done with it."""

class StagingWindows:
    """One end's windows of staging: those that it sends to, and those that tickets have here."""

    def __init__(self) -> None: ...
    def take(self, slot: int, epoch: int) -> int:
        """The window that fewest tickets have: the sender's choice for a slot."""

    def give_back(self, slot: int) -> None: ...
    def claim(self, window: int, owner: int) -> bool:
        """For a ticket at the receiver; False while another one has it."""

    def release(self, window: int, owner: int) -> None: ...

class Liveness:
    """Whether a peer that counts up a word still lives. Times are seconds of any clock."""

    def __init__(self, keep_alive_ms: int, now: float) -> None: ...
    def look(self, beats: int, now: float) -> None: ...
    def is_lost(self, now: float) -> bool: ...

def packed_chunks(strides: Sequence[int], blocks: int, staging_bytes: int) -> list[int]:
    """Bytes of each chunk in which so many blocks of one layer travel packed."""

def link_sizes() -> dict[str, int]:
    """What a link takes in bytes and counts, as it is built in."""

def set_nixl_library(path: str) -> None: ...
def engines() -> dict[str, str]:
    """Of each engine by name why it cannot be used here; "" where it can. Loads none."""

def message_rows() -> list[tuple[str, str, str, str, str, str]]:
    """The table of messages: name, kind, what, expected, state, next."""

def render_message(name: str, values: dict[str, str]) -> str: ...
def stop_all() -> None:
    """Ends the watchdogs of all devices; before torch_npu shuts down. Instances are closed first."""
