"""Programs that measure costs: `benchmark` itself, and its modules `costs`, `names`, `growth` and `scaling`.

How data flow in `benchmark`: `inputs` makes a `Setup` (clip, sizes) and from it a `Problem` (tuner, prompt, batches).
`workloads` lists the rows of the benchmark and builds their sides: the library's own, those of `shortcuts`, and those
of `torch_workloads`. A `Side` (`sides`) runs a step and knows its compilation time, memory and operations. `run` builds
the sides of each workload, runs them in turns, compares their values, measures their memory in a child process
(`memory`), and appends an entry to WORKDIR/benchmark.jsonl. `tables` turns the entries into rows of results.json and
into table.md.
"""
