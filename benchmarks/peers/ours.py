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
    pair = Pair(case)
    memcpy = Memcpy(case, pair.content)
    ours, copies = [], []
    pair.warm_up()
    for _ in range(int(runs)):
        src, dst = pair.blocks()
        copies.append(memcpy.run(src, dst))
        ours.append(pair.push(src, dst).call)
    pair.close()
    print(json.dumps({"ours": ours, "memcpy": copies}))


if __name__ == "__main__":
    main()
