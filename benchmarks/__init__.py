"""Benchmarks of jaxlstm and other libraries: `python -m benchmarks run`.

cases       computations to measure, as data
peers/      libraries and modes that compute them, one record each
measure     one case with all contenders in alternation, in one process
harness     all cases, one process per case; peak memory
machine     cores, versions, date
report      results/*.json to README.md and its plots
"""
