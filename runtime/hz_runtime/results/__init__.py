"""What became of a scan and of a run: predictions, commit records, rows of tables, versions.

How a result came about is not known here. Imports `preparation`, every room below it and the root modules.
"""
