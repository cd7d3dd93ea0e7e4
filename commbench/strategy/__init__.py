"""Strategies: how a model is spread over a cluster, what that takes of memory, and how long a step is.

`commbench plan` ranks them; docs/reference/planner.md has every formula with its source. Where things are:

    model_shape.py   ModelShape: sizes of a model, of a recipe, a Hugging Face config.json, or keys; parameters, FLOP
    workload.py      Workload: batch, types and states of a training
    cluster.py       GpuCluster: nodes, GPUs, links, each number with where it is from (`tagged.Tagged`)
    setting.py       Setting: one strategy; Settings: many, as columns; the tables of schedules, exchanges, recompute
    stages.py        which layers a pipeline's stages have
    memory.py        memory(model, work, settings) -> bytes of a GPU by part
    draws.py         Draws: 300 (or any number of) draws of what nobody knows exactly, the same for all settings
    calls.py         exchanges of all kinds as loads; links.py: how long they take, by each draw
    compute.py       arithmetic and traffic of memory of layers, by each draw
    layer.py         the DAG of a layer's pass over compute and links; dag.py walks it
    step_time.py     step_time(model, work, cluster, settings, draws) -> microseconds, draws x settings, by part

Everything is numpy over columns of settings: a call costs about the same for one setting as for a hundred.
"""
