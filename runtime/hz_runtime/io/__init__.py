"""Files: NIfTI and MGH volumes in, NIfTI out, tables of participants, atomic writing, geometry of a grid.

What a scan is for is not known here. Imports nothing of hz_runtime but its root modules.
"""
