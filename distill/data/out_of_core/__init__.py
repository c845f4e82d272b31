"""Data preparation in bounded memory (`--engine duckdb`, `ray`): equal files, for logs larger than memory.

`database.py` numbers the ids and sorts the rows by user and time in DuckDB, whose joins, aggregates and sorts go to
disk; `disk_chunks.py` keeps the sorted rows on disk, cut between users (`chunks.py`). `filters.py`, `splitting.py` and
`prepare.py` filter, split and write them chunk by chunk with the functions of the plain engine. No list() and no
windows over the log in SQL: DuckDB holds these in memory. `ray_chunks.py` has chunks on a Ray cluster instead.
"""
