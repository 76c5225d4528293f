"""Many scans: which ones, in threads, through the stages, into one folder that one run at a time may hold.

Data sets (BIDS) are not known here. Imports every room of hz_runtime but `bids`.
"""
