"""How fast, beside whom: `python -m benchmarks run`, and the page beside this file.

cases       what is computed: the grid, and the cases beside it, as data
peers/      who computes it: one contender, one record
measure     one case, all contenders in alternation, in one process
harness     all cases, each in a process of its own; the peaks of memory
machine     cores, versions, date
report      results/*.json -> README.md and its pictures
"""
