"""Benchmarks of jaxlstm and other libraries: `python -m benchmarks run`.

cases       computations to measure, as data
peers/      libraries, and modes of jaxlstm, that compute them: one record each
measure     one case with all contenders in alternation, in one process
harness     all cases, one process per case; peak memory
machine     cores, versions, settings, date
worker      the command that the harness runs in each process
report      results/*.json to README.md and its plots
tables      the tables of one result
pictures    the plots of one result
gpu         measurements on a GPU
"""
