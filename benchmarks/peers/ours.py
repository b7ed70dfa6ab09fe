"""What ``engine.py`` does for the others, for this library; and memcpy in the same process, in turn.

python -m torch_llm_datadist run -m benchmarks.peers.ours CASE RUNS
"""

from __future__ import annotations

import json
import sys

from ..cases import CASES
from ..pair import Memcpy, Pair


def main() -> None:
    name, runs = sys.argv[1:]
    case = CASES[name]
    pair, memcpy = Pair(case), Memcpy(case)
    ours, copies = [], []
    for run in range(int(runs) + 1):
        src, dst = pair.blocks()
        copied = memcpy.run(src, dst)
        flagged, _ = pair.push(src, dst)
        if run > 0:  # the first maps the peer's memory
            ours.append(flagged)
            copies.append(copied)
    pair.close()
    print(json.dumps({"ours": ours, "memcpy": copies}))


if __name__ == "__main__":
    main()
