"""A side of a benchmark that follows a script: ``scripted_side.py NAME [BEHAVIOUR]``.

It measures nothing: prefill and decoding take a fiftieth of a second a token, twice that as variant "slow". Every
request is written to the file that the environment variable SIDE_LOG names. Behaviours go wrong in some way.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

SECONDS_A_TOKEN = 0.02


def answer_to(request: dict, name: str, test: dict) -> dict:
    match request["do"]:
        case "open":
            return {"version": "scripted 1.0", "system_info": "none", "memory": {}, "context_length": 64}
        case "prepare":
            return {"variants": ["edgellm"] if name == "edgellm" else ["slow", "default"], "bytes_per_step": 1000}
        case "run":
            factor = 2 if request["variant"] == "slow" else 1
            return {"seconds": factor * SECONDS_A_TOKEN * test["tokens"]}
        case "generate":
            print(json.dumps({"event": "first token"}), flush=True)
            return {"load_seconds": 0.125, "peak_memory_bytes": 1 << 20}
    raise AssertionError(request)


def misbehave(behaviour: str) -> dict | str:
    match behaviour:
        case "error":
            return {"error": "llama.cpp cannot\nload \x1b[31mthis model"}
        case "garbage":
            return "llama_model_loader: loaded meta data"
        case "list":
            return "[1, 2]"
        case "deep":
            return "[" * 100_000
        case "negative":
            return {"seconds": -1, "variants": ["default"]}
        case "not finite":
            return '{"seconds": Infinity, "variants": ["default"]}'
        case "no variants":
            return {"variants": []}
        case "exit":
            sys.exit("no such instruction")
        case "quiet exit":
            sys.exit(3)
        case "signal":
            os.kill(os.getpid(), signal.SIGKILL)
        case "silence":
            time.sleep(60)
    raise AssertionError(behaviour)


def main() -> None:
    name, behaviour = [*sys.argv[1:], ""][:2]
    test: dict = {}
    for line in sys.stdin:
        request = json.loads(line)
        with open(os.environ["SIDE_LOG"], "a") as log:  # noqa: PTH123
            log.write(json.dumps({"side": name, **request}) + "\n")
        if request["do"] == "prepare":
            test = request
        answer = misbehave(behaviour) if behaviour else answer_to(request, name, test)
        print(answer if isinstance(answer, str) else json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
