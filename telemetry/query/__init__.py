"""Query: questions in SQL over recorded runs, answered by DuckDB.

recordings      the runs that are asked about, and the parquet files that they have
tables          the tables and views that a question can name
database        DuckDB, closed to everything else: loads the runs, answers one question
query_command   the command, and the forms of its answer
"""
