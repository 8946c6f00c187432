"""Stock vLLM under steering: a plug-in, no fork.

vLLM loads `plugin.register` in each of its processes (entry point `vllm.general_plugins`). A request carries its steering in
`extra_args` (over HTTP: `vllm_xargs`) under the key `steerlab`. What happens to it:

| where | what | file |
|---|---|---|
| front end | what a client wrote is read | `asks` |
| front end | steerings are loaded and checked, the prefix-cache salt is set, or the request fails | `admission` |
| worker, once | tables are laid, and block outputs pass through them | `tables`, `plugin` |
| worker, each step | every token gets a row of the tables, or row 0, which is zero | `batch`, `seams` |
| worker, after it | what the graph has read, and what gates decided, is fetched | `watch` |
| core, each step | and told in the outputs | `telling`, `plugin` |
| worker, start-up | planted rows must reach the logits, or the engine doesn't start | `canary` |

Nothing here is imported by the rest of the package unless vLLM runs.
"""
