"""vLLM behind `rollout.engines.base.Engine`: the one door to the package `vllm`.

`engine` is what a run file's `engine: {kind: vllm}` makes: policies by name. Each is a `served` policy: its weights, their
label, its restarts. Behind it stands a `replica`, one vLLM that serves one model: `inprocess` (`AsyncLLM`) or `server` (an
API server, ours or a given one). `transport` is how weights get to a replica, `worker` what receives them inside vLLM's own
processes, where they are repacked for processors that want that.
"""
