"""Recording: what a torch program sends, from where, how often, and how long it waits for it.

A recorder in each rank (`commbench.backend.recorder`) counts calls by kind (`tally`) and writes them down every few
seconds (`rank_file`); the parent makes a trace of all ranks (`consolidate`), which is a folder of four files (`folder`)
that sweeps and tunings take. docs/reference/formats.md defines every column.
"""
