"""The report of a run: one table in three forms (terminal, Markdown, HTML), with curves, costs and examples.

`sources` reads, `rows` merges seeds, `table` lays out, `markdown`, `terminal` and `page` render.
"""
